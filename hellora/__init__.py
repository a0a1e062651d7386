"""hellora: fine-tune one Hugging Face model with LoRA across clients that cannot all afford the same training."""
