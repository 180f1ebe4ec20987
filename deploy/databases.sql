-- Once, on an empty PostgreSQL: a database for each server.
CREATE DATABASE prefect;
CREATE DATABASE mlflow;
