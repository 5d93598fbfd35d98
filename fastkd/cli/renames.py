"""Names that a configuration has elsewhere, and the fields that mean the same here.

They come from ``TrainingArguments`` of transformers 4, from the configurations of TRL (SFT, GKD,
distillation) and its scripts, from the example scripts of transformers, and from common habit.
"""

from __future__ import annotations

import difflib
from collections.abc import Sequence
from typing import Any

# A name elsewhere -> the field that takes the same value.
FIELDS = {
    # TrainingArguments of transformers 4
    "adafactor": "optim",
    "activation_checkpointing": "gradient_checkpointing",  # unknown before transformers 5.20
    "activation_checkpointing_kwargs": "gradient_checkpointing_kwargs",
    "evaluate_during_training": "eval_strategy",
    "evaluation_strategy": "eval_strategy",
    "fsdp_min_num_params": "fsdp_config",
    "fsdp_transformer_layer_cls_to_wrap": "fsdp_config",
    "include_inputs_for_metrics": "include_for_metrics",
    "no_cuda": "use_cpu",
    "per_gpu_eval_batch_size": "per_device_eval_batch_size",
    "per_gpu_train_batch_size": "per_device_train_batch_size",
    "push_to_hub_model_id": "hub_model_id",
    "push_to_hub_token": "hub_token",
    "torchdynamo": "torch_compile_backend",
    "xpu_backend": "ddp_backend",
    # Seq2SeqTrainingArguments
    "generation_max_length": "max_completion_length",
    "generation_num_beams": "num_beams",
    # TRL
    "dataset_name": "dataset",
    "dataset_test_split": "eval_split",
    "dataset_train_split": "train_split",
    "max_new_tokens": "max_completion_length",
    "max_prompt_length": "max_length",
    "max_seq_length": "max_length",
    "model_name_or_path": "model",
    "teacher_model_name_or_path": "teacher",
    # Example scripts of transformers
    "block_size": "max_length",
    "max_source_length": "max_length",
    "source_lang": "source_language",
    "src_lang": "source_language",
    "target_lang": "target_language",
    "tgt_lang": "target_language",
    "tokenizer_name": "model",
    "val_max_target_length": "max_target_length",
    "validation_file": "eval_file",
    "validation_split": "eval_split",
    # Habit
    "accumulation_steps": "gradient_accumulation_steps",
    "batch_size": "per_device_train_batch_size",
    "data": "train_file",
    "dev_file": "eval_file",
    "distill_alpha": "kd_ratio",
    "distillation_weight": "kd_ratio",
    "epochs": "num_train_epochs",
    "eval_batch_size": "per_device_eval_batch_size",
    "grad_clip": "max_grad_norm",
    "gradient_accumulation": "gradient_accumulation_steps",
    "kd_alpha": "kd_ratio",
    "kd_loss": "divergence",
    "kd_temperature": "temperature",
    "kd_weight": "kd_ratio",
    "labels": "class_names",
    "lambda": "lmbda",
    "loss": "divergence",
    "loss_type": "divergence",
    "lr": "learning_rate",
    "lr_scheduler": "lr_scheduler_type",
    "max_seq_len": "max_length",
    "num_epochs": "num_train_epochs",
    "optimizer": "optim",
    "output": "output_dir",
    "scheduler": "lr_scheduler_type",
    "seq_length": "max_length",
    "student": "model",
    "student_model": "model",
    "student_model_name_or_path": "model",
    "teacher_model": "teacher",
    "test_file": "eval_file",
    "train_batch_size": "per_device_train_batch_size",
    "train_data": "train_file",
    "val_file": "eval_file",
    "valid_file": "eval_file",
}

# A name elsewhere -> how to say the same here.
ELSEWHERE = {
    # TrainingArguments of transformers 4
    "dispatch_batches": "set accelerator_config: {dispatch_batches: ...}",
    "fp16_backend": "leave it out: fp16 and bf16 need no backend",
    "fp16_opt_level": "leave it out: fp16 and bf16 have no levels",
    "group_by_length": "set train_sampling_strategy: group_by_length",
    "half_precision_backend": "leave it out: fp16 and bf16 need no backend",
    "include_tokens_per_second": "leave it out: the report has the seconds per step",
    "jit_mode_eval": "leave it out: transformers 5 has it no more",
    "logging_dir": "set the environment variable TENSORBOARD_LOGGING_DIR",
    "overwrite_output_dir": "set resume_from_checkpoint: false to start again",
    "past_index": "leave it out: transformers 5 has it no more",
    "save_safetensors": "leave it out: weights are always saved as safetensors",
    "sharded_ddp": "set fsdp",
    "sortish_sampler": "set train_sampling_strategy: group_by_length",
    "split_batches": "set accelerator_config: {split_batches: ...}",
    "tpu_num_cores": "leave it out: the launcher knows the number of cores",
    "use_ipex": "leave it out: transformers 5 has it no more",
    "use_mps_device": "leave it out: a GPU that is there is used",
    "warmup_ratio": "set warmup_steps, which below 1 is a share of the steps",
    "predict_with_generate": "leave it out: fastkd evaluate compares the answers with the references",
    # TRL
    "assistant_only_loss": "leave it out: of messages, only the assistant's turns are trained on",
    "completion_only_loss": "leave it out: with prompt and completion, only the completion is trained on",
    "dataset_config": "set dataset: NAME:CONFIGURATION",
    "dataset_config_name": "set dataset: NAME:CONFIGURATION",
    "dataset_text_field": "set column_mapping: {text: FIELD}",
    "eval_packing": "leave it out: packing is for both data sets",
    "load_in_4bit": "set teacher_model_init_kwargs: {quantization_config: {load_in_4bit: true, ...}}",
    "load_in_8bit": "set teacher_model_init_kwargs: {quantization_config: {load_in_8bit: true, ...}}",
    "lora_alpha": "set peft_config: {peft_type: LORA, lora_alpha: ...}",
    "lora_dropout": "set peft_config: {peft_type: LORA, lora_dropout: ...}",
    "lora_r": "set peft_config: {peft_type: LORA, r: ...}",
    "lora_target_modules": "set peft_config: {peft_type: LORA, target_modules: [...]}",
    "lora_rank": "set peft_config: {peft_type: LORA, r: ...}",
    "padding_free": "set packing: true, whose batches have no padding",
    "seq_kd": "run fastkd generate, and set train_file to its output_dir",
    "teacher_dtype": "set teacher_model_init_kwargs: {dtype: ...}",
    "teacher_model_revision": "set teacher_model_init_kwargs: {revision: ...}",
    "use_lora": "set peft_config: {peft_type: LORA, r: 8}",
    "use_peft": "set peft_config: {peft_type: LORA, r: 8}",
    # Example scripts of transformers, and habit
    "label_column": "set column_mapping: {label: COLUMN}",
    "label_column_name": "set column_mapping: {label: COLUMN}",
    "num_labels": "set class_names, or leave it out: the classes are those of the data",
    "prompt_column": "set column_mapping: {prompt: COLUMN}",
    "summary_column": "set column_mapping: {target: COLUMN}",
    "text_column": "set column_mapping: {text: COLUMN}",
    "text_column_name": "set column_mapping: {text: COLUMN}",
}


def unknown_fields(given: dict[Any, Any], known: Sequence[str]) -> str:
    """A sentence about fields that do not exist, with the ones that were probably meant."""
    if len(given) == 1:
        ((name, value),) = given.items()
        return f"unknown field {name!r}{_advice(name, value, known)}"
    return "unknown fields: " + ", and ".join(
        f"{name!r}{_advice(name, value, known)}" for name, value in given.items()
    )


def _advice(name: Any, value: Any, known: Sequence[str]) -> str:
    name = str(name).lower().replace("-", "_")
    if name in FIELDS and FIELDS[name] in known:
        return f": its name here is {FIELDS[name]!r}"
    if name in ELSEWHERE:
        return f": {ELSEWHERE[name]}"
    inside = [field for field in value if field in known] if isinstance(value, dict) else []
    if inside:
        return f": fields are not grouped, so write {', '.join(inside)} without indentation"
    near = difflib.get_close_matches(name, known, n=1)
    return f"; did you mean {near[0]!r}?" if near else "; fastkd distill --help lists the fields"
