"""An adapter of the starter with random weights, as a LoRA run would leave it."""

from pathlib import Path

import torch
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, AutoTokenizer
from trl import ModelConfig

from metatune.recipes.adapters import STARTER, record_base


def save_adapter(folder: Path, task_type: str = "CAUSAL_LM", std: float = 0.05, **options):
    """Save an adapter with weights of deviation `std`, and the tokenizer, in `folder`; return the adapted model."""
    torch.manual_seed(0)
    if task_type == "SEQ_CLS":
        base = AutoModelForSequenceClassification.from_pretrained(STARTER, dtype=torch.float32, num_labels=1)
    else:
        base = AutoModelForCausalLM.from_pretrained(STARTER, dtype=torch.float32)
    options = {"r": 4, "target_modules": ["q_proj", "v_proj", "down_proj"], **options}
    model = get_peft_model(base, LoraConfig(task_type=task_type, **options)).eval()
    for name, parameter in model.named_parameters():
        if "lora_B" in name or "lora_embedding_A" in name:  # zero at first, which would leave the base as it is
            torch.nn.init.normal_(parameter, std=std)
        elif parameter.requires_grad and "lora_" not in name:  # a copy of the base's weight
            parameter.data += 0.05 * torch.randn_like(parameter)
    record_base(model, ModelConfig(model_name_or_path="starter"))
    model.save_pretrained(folder)
    AutoTokenizer.from_pretrained(STARTER).save_pretrained(folder)
    return model
