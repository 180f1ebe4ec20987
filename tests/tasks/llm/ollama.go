// Renders Go templates as Ollama does: a list of {template, messages} on stdin, the list of prompts on stdout, as JSON.
package main

import (
	"encoding/json"
	"log"
	"os"
	"strings"
	"text/template"
)

type message struct{ Role, Content string }

type job struct {
	Template string
	Messages []message
}

// gathered is what a template sees: the system's words of all system turns, and turns of which no two neighbours share
// a role.
func gathered(messages []message) (string, []*message) {
	var system []string
	var turns []*message
	for i := range messages {
		turn := messages[i]
		if turn.Role == "system" {
			system = append(system, turn.Content)
		}
		if last := len(turns) - 1; last >= 0 && turns[last].Role == turn.Role {
			turns[last].Content += "\n\n" + turn.Content
			continue
		}
		turns = append(turns, &turn)
	}
	return strings.Join(system, "\n\n"), turns
}

func rendered(task job) string {
	made, err := template.New("").Option("missingkey=zero").Parse(task.Template)
	if err != nil {
		log.Fatal(err)
	}
	var out strings.Builder
	system, turns := gathered(task.Messages)
	if err := made.Execute(&out, map[string]any{"System": system, "Messages": turns, "Response": ""}); err != nil {
		log.Fatal(err)
	}
	return out.String()
}

func main() {
	var jobs []job
	if err := json.NewDecoder(os.Stdin).Decode(&jobs); err != nil {
		log.Fatal(err)
	}
	prompts := make([]string, len(jobs))
	for i, task := range jobs {
		prompts[i] = rendered(task)
	}
	if err := json.NewEncoder(os.Stdout).Encode(prompts); err != nil {
		log.Fatal(err)
	}
}
