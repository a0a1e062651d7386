"""TRL's own trainer, in a process of its own: it trains the same rows once, when it is its turn (`sft.py`).

It imports nothing of hellora. Arguments: the model's folder, a file of rows (`messages`), steps, rows a step, tokens,
threads, clock.
"""

import json
import sys
import tempfile
import time
from contextlib import redirect_stdout

import torch
from datasets import load_dataset
from peft import LoraConfig
from transformers import AutoModelForCausalLM, AutoTokenizer
from trl import SFTConfig, SFTTrainer

TARGETS = ["q_proj", "k_proj", "v_proj", "o_proj"]


def main() -> None:
    folder, file, steps, batch_size, max_length = sys.argv[1:6]
    torch.set_num_threads(int(sys.argv[6]))
    clock = time.process_time if sys.argv[7] == "cpu" else time.perf_counter
    tokenizer = AutoTokenizer.from_pretrained(folder)
    rows = load_dataset("json", data_files=file, split="train")
    for _ in sys.stdin:
        model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
        with tempfile.TemporaryDirectory() as out, redirect_stdout(sys.stderr):  # it prints on its own
            start = clock()
            config = SFTConfig(
                output_dir=out, max_steps=int(steps), per_device_train_batch_size=int(batch_size),
                max_length=int(max_length), learning_rate=1e-4, lr_scheduler_type="constant", report_to=[],
                gradient_checkpointing=False, save_strategy="no", logging_strategy="no", disable_tqdm=True, bf16=False,
                use_cpu=True,
            )  # fmt: skip
            lora = LoraConfig(r=8, lora_alpha=8, target_modules=TARGETS, lora_dropout=0.0, task_type="CAUSAL_LM")
            trainer = SFTTrainer(
                model=model, args=config, train_dataset=rows, processing_class=tokenizer, peft_config=lora
            )
            trainer.train()
            seconds = clock() - start
        print(json.dumps({"seconds": seconds}), flush=True)


if __name__ == "__main__":
    main()
