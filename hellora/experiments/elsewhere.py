"""What settings, strategies and presets are called in papers, in other libraries and by people, and what they are here.

Capitals, hyphens and underscores do not count: `FlexLoRA` is `flexlora`, and `learning-rate` is `learning_rate`.
"""

from collections.abc import Iterable, Mapping

from hellora.experiments.presets import presets

# What to write in a file, and the keys that mean it elsewhere. Where more than the key differs, a value stands with it.
SETTINGS: Mapping[str, tuple[str, ...]] = {
    "rounds": (
        "num_rounds", "n_rounds", "comm_rounds", "communication_rounds", "global_rounds", "num_server_rounds",
        "total_rounds", "max_rounds",
    ),
    "cohort, a number of clients": (
        "clients_per_round", "num_selected", "sample_clients", "participants", "min_fit_clients", "min_train_nodes",
        "fraction_fit", "fraction_train", "client_fraction", "participation_rate", "sample_rate", "frac",
    ),
    "min_clients": ("min_available_clients", "min_available_nodes", "min_num_clients", "min_completion_rate"),
    "deadline": ("round_timeout", "fit_timeout"),
    "seed": ("random_seed", "random_state", "data_seed"),
    "eval_every": ("eval_steps", "eval_strategy", "evaluation_strategy", "eval_interval", "test_every"),
    "keep": ("save_total_limit", "save_steps", "save_strategy"),
    "task.max_length": ("max_seq_length", "max_seq_len", "max_len", "seq_length", "sequence_length", "cutoff_len"),
    "task.label_smoothing": ("label_smoothing_factor",),
    "task.name": ("task_type", "problem_type"),
    "model.name": ("model_name", "model_name_or_path", "pretrained_model_name_or_path", "base_model", "model_id"),
    "model.rank": ("r", "lora_r", "lora_rank"),
    "model.alpha": ("lora_alpha",),
    "model.dropout": ("lora_dropout",),
    "model.targets": ("target_modules", "lora_target_modules", "lora_targets"),
    "model.rslora": ("use_rslora",),
    "model.classes": ("num_labels", "num_classes", "n_classes"),
    "model.dtype": ("torch_dtype",),
    'model.quantization = "4bit"': ("load_in_4bit",),
    'model.quantization = "8bit"': ("load_in_8bit",),
    "model.quantization": ("quantization_config",),
    "data.name": ("dataset", "dataset_name", "data_path", "data_files", "train_file"),
    "data.subset": ("dataset_config", "dataset_config_name", "config_name"),
    "data.text": ("text_column", "dataset_text_field", "sentence_key", "text_field", "text_column_name"),
    "data.label": ("label_column", "label_field", "label_column_name", "target_column"),
    "data.max_examples": ("max_train_samples", "max_samples"),
    "data.clients": (
        "num_clients", "n_clients", "num_users", "num_partitions", "num_supernodes", "client_num_in_total",
    ),
    "data.alpha": ("dirichlet_alpha", "dir_alpha", "dirichlet_beta", "partition_alpha"),
    "data.partitioner": ("partition", "partition_method", "iid", "non_iid"),
    "fleet.layers": ("num_layers", "trainable_layers", "layer_budget", "capacity", "capacities"),
    "fleet.ranks": ("client_ranks", "local_ranks", "rank_list"),
    "fleet.shares": ("roc", "ratio_of_clients"),
    "method.local_training = ['fed_prox'] and method.mu": ("proximal_mu", "prox_mu", "fedprox_mu"),
    "method.allocator": ("layer_allocation", "allocation_strategy"),
    "method.aggregator": ("strategy", "aggregation", "aggregation_strategy", "algorithm", "fed_alg"),
    "train.lr": ("learning_rate", "client_lr", "local_lr", "eta"),
    "train.batch_size": ("per_device_train_batch_size", "train_batch_size", "local_batch_size", "bs"),
    "train.epochs": ("num_epochs", "num_train_epochs", "local_epochs", "local_ep"),
    "train.steps": ("max_steps", "local_steps", "local_iterations"),
    "train.schedule": ("lr_scheduler", "lr_scheduler_type", "scheduler"),
    "train.warmup": ("warmup_ratio",),
    "train.warmup, a share of the steps": ("warmup_steps",),
    "train.optimizer": ("optim",),
    "train.weight_decay": ("wd",),
    "train.clip_norm": ("max_grad_norm", "clip_grad_norm", "grad_clip", "gradient_clipping"),
    "stop.metric": ("metric_for_best_model", "monitor"),
    "stop.patience": ("early_stopping", "early_stopping_patience"),
    "stop.target": ("target_accuracy",),
    "data.validation": ("validation_split", "val_split", "validation_fraction"),
    'train.precision = "bf16"': ("bf16", "fp16", "amp", "mixed_precision"),
    'policy.use = ["recompute_all"]': ("gradient_checkpointing", "use_gradient_checkpointing"),
    'policy.use = ["micro_batch"] and policy.micro_batch': ("gradient_accumulation_steps",),
    "compute.eval_batch_size": ("per_device_eval_batch_size",),
    "compute.device": ("use_cpu", "no_cuda", "gpu", "device_map"),
    "compute.workers": ("num_workers", "dataloader_num_workers", "num_gpus"),
    "server.lr": ("server_learning_rate", "server_lr"),
    "server.momentum": ("server_momentum",),
    "tracking.trackers": ("report_to", "log_with"),
    "--out on the command line": ("output_dir", "logging_dir", "save_dir", "out", "out_dir"),
    "--resume on the command line": ("resume_from_checkpoint", "resume"),
}  # fmt: skip
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
    "partitioner": {
        "dirichlet": ("non_iid", "lda"),
        "classes_per_client": ("pathological", "shards"),
        "column": ("natural", "natural_id", "by_user"),
    },
    "sampler": {"uniform": ("random",)},
    "allocator": {  # HLA, the heterogeneous layer allocation of Fed-HeLLo: by scores, by a pattern, by one with chance
        "fisher": ("fim_hla", "fim", "fisher_information"),
        "geometric": ("gd_hla", "triangle", "inverted_triangle", "bottleneck"),
        "randomized_geometric": ("rgd_hla", "rgd"),
    },
    "aggregator": {"participant_mean": ("fedavg", "fed_avg", "mean", "average"), "coordinate_median": ("median",)},
    "local_training": {"plain": ("fedavg", "fed_avg", "sgd")},
    "server_optimizer": {"average": ("fedavg", "fed_avg", "fedavgm", "fed_avg_m", "sgd", "fed_opt")},
}  # fmt: skip
# Methods that are several presets, or one of another name.
PRESETS: Mapping[str, tuple[str, ...]] = {
    "helora": ("helora_pad", "helora_kd"),
    "fedavg": ("fedit",),
    "fed_avg_lora": ("fedit",),
    "hla": ("fed_hello",),
    "heterolora": ("hetlora",),
    "demo": ("quickstart",),
}


def same_word(name: str) -> str:
    """Return a name without what people write differently: capitals, hyphens, underscores and spaces."""
    return "".join(each for each in name.lower() if each not in "-_ ")


def spelt(name: str, known: Iterable[str]) -> str | None:
    """Return the one of the known names that differs in no more than capitals, hyphens and underscores."""
    return next((each for each in known if same_word(each) == same_word(name)), None)


def setting_called(key: str) -> str | None:
    """Return what a key of a table is elsewhere, as one would write it here, if that is known."""
    return next((ours for ours, others in SETTINGS.items() if spelt(key, others)), None)


def strategy_called(kind: str, name: str) -> str | None:
    """Return the strategy of a kind that has a name elsewhere, or its own but for capitals and hyphens."""
    return next((ours for ours, others in STRATEGIES.get(kind, {}).items() if spelt(name, (ours, *others))), None)


def presets_called(name: str) -> tuple[str, ...]:
    """Return the preset of a name, or those of a method that is called so elsewhere."""
    if (preset := spelt(name, presets())) is not None:
        return (preset,)
    method = spelt(name, PRESETS)
    return () if method is None else PRESETS[method]
