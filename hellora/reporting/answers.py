"""This section shows what a language model answers to the same prompts, before and after training."""

from hellora.reporting.parts import Section, Table, missing
from hellora.reporting.record import RunRecord

MOST = 100  # prompts that are shown


def answers(run: RunRecord) -> list[Section]:
    """Show prompt, answers and reference, of a run that answers prompts; [] of tasks that do not answer."""
    if not run.answers:
        asks = run.table.get("task", {}).get("name") in ("causal_lm", "seq2seq")
        why = "The run was not asked to answer prompts: set task.answers."
        return [missing("answers", "What it answers", why)] if asks else []
    last = max((line["round"] for line in run.answers if line["round"] is not None), default=None)
    said = {(line["round"], line["row"]): line["answer"] for line in run.answers}
    prompts = {line["row"]: line for line in run.answers}
    columns = ["prompt", "before training", *([] if last is None else [f"after round {last}"]), "reference"]
    rows = []
    for row, line in sorted(prompts.items())[:MOST]:
        given = [said.get((round, row), "–") for round in dict.fromkeys((None, last))]
        rows.append([line["prompt"], *given, line["reference"]])
    texts = Table(columns, rows, left_out=len(prompts) - len(rows))
    lead = "Always the likeliest token. The answers of all rounds are in answers.jsonl."
    return [Section("answers", "What it answers", lead, texts=texts, wide=True)]
