"""Of a run's metrics one is the main one: tables compare it, plots show it first, tuning goes by it."""

from collections.abc import Iterable, Sequence

UNLABELLED = -100  # the class of an example, or of a word, that has none: it has a loss of 0 and counts in no metric
MAIN = ("accuracy", "pearson", "entity_f1", "micro_f1")  # the first that a run has; else its loss
SHARES = frozenset({"accuracy", "entity_f1", "micro_f1", "macro_f1", "mean_average_precision"})  # from 0 to 1
LOWER_IS_BETTER = frozenset({"loss", "perplexity", "rmse"})
IN_WORDS = {
    "entity_f1": "entity F1",
    "micro_f1": "micro F1",
    "macro_f1": "macro F1",
    "rouge_l": "ROUGE-L",
    "rmse": "RMSE",
    "pearson": "Pearson's r",
    "spearman": "Spearman's ρ",
    "matthews": "Matthews' φ",
    "auroc": "AUROC",
}


def main_metric(metrics: Iterable[str]) -> str:
    """Return the name of the main one of some metrics."""
    known = set(metrics)
    return next((name for name in MAIN if name in known), "loss")


def in_words(metric: str) -> str:
    """Return a metric's name as a person reads it."""
    return IN_WORDS.get(metric, metric.replace("_", " "))


def asked_for(named: Sequence[str], metrics: Iterable[str]) -> list[str]:
    """Return those metrics that `task.metrics` asks for besides the task's own: "bias" of "mine.py:bias", and
    "bias.worst" where that function returns several."""
    names = [name.rpartition(":")[2] for name in named]
    return [metric for metric in metrics if metric.partition(".")[0] in names]
