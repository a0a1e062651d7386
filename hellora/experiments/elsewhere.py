"""What settings and strategies are called in papers, in other libraries and by people, and what they are here."""

from collections.abc import Mapping

SETTINGS: Mapping[str, tuple[str, ...]] = {
    "rounds": ("num_rounds", "n_rounds", "comm_rounds", "communication_rounds", "global_rounds", "num_server_rounds"),
    "cohort": ("clients_per_round", "num_selected", "sample_clients", "participants", "min_fit_clients"),
    "seed": ("random_seed", "random_state"),
    "task.max_length": ("max_seq_length", "max_seq_len", "max_len", "seq_length", "sequence_length", "cutoff_len"),
    "model.name": ("model_name", "model_name_or_path", "pretrained_model_name_or_path", "base_model", "model_id"),
    "model.rank": ("r", "lora_r", "lora_rank"),
    "model.alpha": ("lora_alpha",),
    "model.dropout": ("lora_dropout",),
    "model.targets": ("target_modules", "lora_target_modules", "lora_targets"),
    "model.rslora": ("use_rslora",),
    "model.dtype": ("torch_dtype",),
    "model.quantization": ("load_in_4bit", "load_in_8bit", "quantization_config"),
    "data.name": ("dataset", "dataset_name", "data_path", "data_files"),
    "data.subset": ("dataset_config", "dataset_config_name", "config_name"),
    "data.clients": ("num_clients", "n_clients", "num_users", "num_partitions", "num_supernodes"),
    "data.alpha": ("dirichlet_alpha", "dir_alpha", "dirichlet_beta"),
    "data.partitioner": ("partition", "partition_method", "iid", "non_iid"),
    "train.lr": ("learning_rate", "client_lr", "local_lr"),
    "train.batch_size": ("per_device_train_batch_size", "train_batch_size", "local_batch_size", "bs"),
    "train.epochs": ("num_epochs", "num_train_epochs", "local_epochs", "local_ep"),
    "train.steps": ("max_steps", "local_steps", "local_iterations"),
    "train.schedule": ("lr_scheduler", "lr_scheduler_type", "scheduler"),
    "train.warmup": ("warmup_ratio",),
    "train.optimizer": ("optim",),
    "train.clip_norm": ("max_grad_norm", "clip_grad_norm", "grad_clip", "gradient_clipping"),
    "train.precision": ("bf16", "fp16", "amp", "mixed_precision"),
    "stop.metric": ("metric_for_best_model", "monitor"),
    "stop.patience": ("early_stopping", "early_stopping_patience"),
    "stop.target": ("target_accuracy",),
    "data.validation": ("validation_split", "val_split", "validation_fraction"),
    "compute.eval_batch_size": ("per_device_eval_batch_size",),
    "tracking.trackers": ("report_to", "log_with"),
}
STRATEGIES: Mapping[str, Mapping[str, tuple[str, ...]]] = {
    "task": {
        "sequence_classification": (
            "text_classification", "classification", "sentiment", "sentiment_analysis", "seq_cls",
        ),
        "image_classification": ("images", "vision", "image"),
        "causal_lm": (
            "text_generation", "chat", "sft", "instruction", "instructions", "instruction_tuning", "lm", "clm",
        ),
        "preference": ("dpo", "rlhf", "preferences", "reward", "orpo"),
        "token_classification": ("ner", "named_entity_recognition", "tagging", "pos", "token_cls"),
        "regression": ("sts", "stsb", "rating", "ratings", "scoring"),
        "multi_label": ("multilabel", "multi_label_classification", "tags"),
        "seq2seq": ("text2text_generation", "summarization", "translation", "seq2seq_lm", "encoder_decoder"),
    },
    "partitioner": {"dirichlet": ("non_iid", "noniid", "lda"), "classes_per_client": ("pathological", "shards")},
    "aggregator": {"participant_mean": ("fedavg", "fed_avg", "mean", "average"), "coordinate_median": ("median",)},
    "local_training": {"plain": ("fedavg", "fed_avg", "sgd")},
    "server_optimizer": {"average": ("fedavg", "fed_avg", "fedavgm", "fed_avg_m", "sgd")},
}  # fmt: skip


def setting_called(key: str) -> str | None:
    """Return the setting that a key of a table means elsewhere, if that is known."""
    return next((ours for ours, others in SETTINGS.items() if key in others), None)


def strategy_called(kind: str, name: str) -> str | None:
    """Return the strategy of a kind that has a name elsewhere, or its own but for capitals and hyphens."""
    word = name.lower().replace("-", "_").replace(" ", "_")
    return next((ours for ours, others in STRATEGIES.get(kind, {}).items() if word in (ours, *others)), None)
