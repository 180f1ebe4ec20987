"""The bundled task: from a customer's message to a support ticket. `python data/make_tickets.py` writes data/tickets/.

A message such as

    Channel: mail
    Hi there, My sister has the steam iron and is happy with it. The Kelm X3 router turns itself off every few
    minutes. The order number is KX7731. I want my money back. No rush. Thanks, Mara

becomes one JSON object, its keys always in this order:

    {"category": "defect", "product": "Kelm X3 router", "order_id": "KX7731", "urgent": false, "refund": true}

* category: what went wrong: delivery, billing, defect, account, or nothing but a question.
* product: as the customer writes it. Other products may be mentioned that are not what the message is about.
* order_id: as written, or null. House numbers, hotlines and postcodes are not order ids.
* urgent: true when the customer presses. Many say nothing of it, and some that there is no hurry.
* refund: true when money back is asked for. A replacement is no refund, and "I do not want a refund" is none either.

    chats.jsonl    400 messages with answers as a log would have them: always the right object, but nearly always
                   wrapped in a sentence or a ```json fence where the message came by chat, because that desk's
                   assistant was a chatty one, and rarely where it came by mail. To learn the task from, bad manners
                   included.
    pairs.jsonl    160 other messages: the bare object is chosen; the same, or sometimes a slightly wrong one, wrapped,
                   is rejected. To learn from that a program reads the answer.
    prompts.jsonl  300 messages to measure on. The right answer is the bare object, to the letter.

    judged.jsonl         240 more messages, each with the right object over three that are as long to the character and
                         as bare, but wrong in what they say, and over itself wrapped. To learn the matter from, where
                         the manners tell nothing, and the manners.
    questions.jsonl      400 more messages with the right bare object. To practise on, where answers are rewarded.

The messages of prompts.jsonl are built from other sentences, products and names than those of all other files (see
ticket_phrases.json: train and held_out): they share nothing but the system message and the name of the channel. All
text is invented for this project. The script gives the same bytes everywhere: it draws with `random.random()` only,
whose stream Python promises.
"""

from __future__ import annotations

import json
import random
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

Bank = dict[str, list[str]]
"""The sentences of a message. {p} product, {o} another product, {i} order id, {n} a number, {w} and {v} names."""
Ticket = dict[str, Any]
Row = dict[str, Any]

HERE = Path(__file__).parent
SYSTEM = (
    'Turn the customer\'s message into a ticket: {"category": delivery, billing, defect, account or question, '
    '"product": text, "order_id": text or null, "urgent": true or false, "refund": true or false}. '
    "Reply with the JSON object only."
)
CATEGORIES = ("delivery", "billing", "defect", "account", "question")
GOODS = ("delivery", "billing", "defect")
"""Where a refund or a new one can be asked for."""
HURRIES = ("low", "medium", "high")
"""What is said of the time: there is no hurry, nothing, it is urgent."""
BEFORE = ("Here is the ticket:", "Here you go:", "Here is what I took from the message:", "Sure, here it is:")
AFTER = ("I hope this helps!", "Let me know if anything is missing.", "It is ready to be filed.")


class Dice(random.Random):
    def pick(self, items: Sequence[Any]) -> Any:
        return items[int(self.random() * len(items))]

    def chance(self, share: float) -> bool:
        return self.random() < share

    def number(self, low: int, high: int) -> int:
        return low + int(self.random() * (high - low + 1))

    def shuffled(self, items: Sequence[Any]) -> list[Any]:
        return [item for _, item in sorted((self.random(), item) for item in items)]


class Case(NamedTuple):
    prompt: list[Row]
    ticket: Ticket
    chatted: bool


def message(dice: Dice, bank: Bank, category: str) -> tuple[str, Ticket]:
    """A customer's message and the ticket it should become."""
    product, order = dice.pick(bank["products"]), _order_id(dice) if dice.chance(0.65) else None
    hurry, refund = dice.pick(HURRIES), category in GOODS and dice.chance(0.45)
    asks = [dice.pick(bank[hurry])] if hurry != "medium" else []
    if refund:
        asks.append(dice.pick(bank["refund"]))
    elif dice.chance(0.5):
        asks.append(dice.pick(bank["replace"] if category in GOODS and dice.chance(0.7) else bank["answer"]))
    told = [dice.pick(bank[category])] + ([dice.pick(bank["asides"])] if dice.chance(0.35) else [])
    parts = dice.shuffled(told) + ([dice.pick(bank["orders"])] if order else []) + dice.shuffled(asks)
    if dice.chance(0.15):  # some end with what others begin with
        parts = parts[1:] + parts[:1]
    parts = ([dice.pick(bank["greetings"])] if dice.chance(0.45) else []) + parts
    parts += [dice.pick(bank["goodbyes"])] if dice.chance(0.4) else []
    names = dice.shuffled(bank["names"])
    slots = {"p": product, "i": order, "o": dice.pick(bank["others"]), "n": dice.number(101, 998)}
    text = _by_hand(dice, " ".join(parts)).format(**slots, w=names[0], v=names[1])
    answers = {"order_id": order, "urgent": hurry == "high", "refund": refund}
    return text, {"category": category, "product": product, **answers}


def _order_id(dice: Dice) -> str:
    letters = "ABCDEFGHKLMNPRSTVWX"
    form = dice.pick(("{a}-{five}", "{a}{b}{four}", "{seven}"))
    digits = {
        "four": dice.number(1000, 9999),
        "five": dice.number(10000, 99999),
        "seven": dice.number(10**6, 10**7 - 1),
    }
    return str(form.format(a=dice.pick(letters), b=dice.pick(letters), **digits))


def _by_hand(dice: Dice, template: str) -> str:
    """Some people write without capitals, some mistype. The slots are filled later and stay as they are."""
    if dice.chance(0.15):
        template = template.lower()
    words = template.split(" ")
    for _ in range(dice.pick((0, 0, 0, 1, 2))):
        at = dice.number(0, len(words) - 1)
        if re.fullmatch("[a-z]{5,}", words[at], re.IGNORECASE):
            words[at] = _mistyped(dice, words[at])
    return " ".join(words)


def _mistyped(dice: Dice, word: str) -> str:
    i = dice.number(1, len(word) - 3)
    swapped = word[:i] + word[i + 1] + word[i] + word[i + 2 :]
    return swapped if dice.chance(0.5) and swapped != word else word[:i] + word[i + 1 :]


def wrapped(dice: Dice, answer: str) -> str:
    """The answer as a chatty assistant gives it."""
    before, after = dice.pick(BEFORE), dice.pick(AFTER)
    fence = f"```json\n{answer}\n```"
    return str(
        dice.pick(
            (fence, fence, f"{before}\n{fence}", f"{before}\n{fence}", f"{before} {answer}", f"{answer}\n{after}")
        )
    )


def slightly_wrong(dice: Dice, ticket: Ticket) -> Ticket:
    """The ticket with one field off."""
    field = dice.pick(("category", "urgent", "refund", "order_id"))
    others: dict[str, list[Any]] = {
        "category": [c for c in CATEGORIES if c != ticket["category"]],
        "urgent": [not ticket["urgent"]],
        "refund": [not ticket["refund"]],
        "order_id": [None] if ticket["order_id"] else [_order_id(dice)],
    }
    return ticket | {field: dice.pick(others[field])}


def as_long(dice: Dice, bank: Bank, ticket: Ticket, size: int) -> list[Ticket]:
    """So many tickets, if there are as many, with something wrong in them that their length does not tell. Where a
    word is longer than the right one, a flag makes up for it: true is shorter than false. Most take understanding to
    tell from the right one, in half of the messages one was copied badly. Flags are wrongly off as often as wrongly on
    (those with the fewest on come first: most messages have none), or a judge learns what is rare instead."""
    flags = ("urgent", "refund")
    misread = [{"category": c} for c in CATEGORIES]
    misread += [{"category": c, flag: not ticket[flag]} for c in CATEGORIES for flag in flags]
    misread += [{"urgent": ticket["refund"], "refund": ticket["urgent"]}]
    names = [name for name in (*bank["products"], *bank["others"]) if len(name) == len(ticket["product"])]
    miscopied = [{"product": dice.pick(names)}]
    miscopied += [{"order_id": _other_digits(dice, ticket["order_id"])}] if ticket["order_id"] else []
    subtle, plain = (
        dice.shuffled([wrong for change in kind if _differs_unseen(ticket, wrong := ticket | change)])
        for kind in (misread, miscopied)
    )
    subtle.sort(key=lambda wrong: wrong["urgent"] + wrong["refund"])
    return [*subtle[: size - dice.chance(0.5)], *plain][:size]


def _differs_unseen(right: Ticket, wrong: Ticket) -> bool:
    return wrong != right and len(json.dumps(wrong)) == len(json.dumps(right))


def _other_digits(dice: Dice, order_id: str) -> str:
    return "".join(dice.pick("123456789".replace(sign, "")) if sign.isdigit() else sign for sign in order_id)


def draw(dice: Dice, bank: Bank, size: int, taken: set[str]) -> list[Case]:
    """`size` cases, all categories alike often, no message that was drawn before."""
    cases: list[Case] = []
    while len(cases) < size:
        chatted = dice.chance(0.36)
        text, ticket = message(dice, bank, CATEGORIES[len(cases) % len(CATEGORIES)])
        if text not in taken:
            taken.add(text)
            asked = f"Channel: {'chat' if chatted else 'mail'}\n{text}"
            prompt = [{"role": "system", "content": SYSTEM}, {"role": "user", "content": asked}]
            cases.append(Case(prompt, ticket, chatted))
    return [cases[i] for i in dice.shuffled(range(size))]


def chat(dice: Dice, case: Case) -> Row:
    answer = json.dumps(case.ticket)
    said = wrapped(dice, answer) if dice.chance(0.97 if case.chatted else 0.03) else answer
    return {"messages": [*case.prompt, {"role": "assistant", "content": said}]}


def pair(dice: Dice, case: Case) -> Row:
    other = slightly_wrong(dice, case.ticket) if dice.chance(0.25) else case.ticket
    return {"prompt": case.prompt, "chosen": json.dumps(case.ticket), "rejected": wrapped(dice, json.dumps(other))}


def judged(dice: Dice, bank: Bank, case: Case) -> list[Row]:
    right = json.dumps(case.ticket)
    worse = [*map(json.dumps, as_long(dice, bank, case.ticket, 3)), wrapped(dice, right)]
    return [{"prompt": case.prompt, "chosen": right, "rejected": answer} for answer in worse]


def prompt(case: Case) -> Row:
    return {"prompt": case.prompt, "completion": json.dumps(case.ticket)}


def make() -> dict[str, list[Row]]:
    """All rows by the name of their file."""
    banks: dict[str, Bank] = json.loads((HERE / "ticket_phrases.json").read_text("utf-8"))
    train = banks["train"]
    dice, more, taken = Dice(20), Dice(21), set[str]()
    return {
        "chats": [chat(dice, case) for case in draw(dice, train, 400, taken)],
        "pairs": [pair(dice, case) for case in draw(dice, train, 160, taken)],
        "prompts": [prompt(case) for case in draw(dice, banks["held_out"], 300, taken)],
        "judged": [row for case in draw(more, train, 240, taken) for row in judged(more, train, case)],
        "questions": [prompt(case) for case in draw(more, train, 400, taken)],
    }


def main(folder: Path = HERE / "tickets") -> None:
    folder.mkdir(exist_ok=True)
    for name, rows in make().items():
        text = "".join(json.dumps(row) + "\n" for row in rows)
        (folder / f"{name}.jsonl").write_text(text, encoding="utf-8", newline="\n")


if __name__ == "__main__":
    main()
