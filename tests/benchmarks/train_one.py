"""One training run of bench_train.py, in the environment of its tool: `python train_one.py TOOL JOB.json`.

Only the standard library is imported before the tool is known.
"""

import json
import resource
import sys
import time
from pathlib import Path
from typing import Any


def meter(job: dict[str, Any]) -> Any:
    """Return a callback that records what training alone took, and how many tokens it computed.

    If the job names dev questions (`dev`, see `write_dev_tokens` in equal_loss.py), it also records their loss
    every `dev_steps` steps, outside of the measured time, and ends training once it is at most `target`.
    """
    import torch
    from transformers import TrainerCallback

    path = Path(job["measured"])

    class Meter(TrainerCallback):  # type: ignore[misc]
        def on_train_begin(self, *_: Any, model: Any, **__: Any) -> None:
            self.tokens, self.curve = 0, list[dict[str, float]]()
            model.get_input_embeddings().register_forward_hook(self._count)
            self.started, self.cpu, self.memory = time.perf_counter(), time.process_time(), peak_mib()

        def _count(self, module: Any, ids: tuple[Any, ...], output: Any) -> None:
            self.tokens += ids[0].numel()

        def on_step_end(self, args: Any, state: Any, control: Any, *_: Any, model: Any, **__: Any) -> None:
            if "dev" not in job or state.global_step % job["dev_steps"]:
                return
            paused, cpu, tokens = time.perf_counter(), time.process_time(), self.tokens
            spent = {"seconds": paused - self.started, "cpu_seconds": cpu - self.cpu}
            loss = dev_loss(model, Path(job["dev"]))
            self.curve.append({"step": state.global_step, "dev_loss": loss, **spent})
            print(self.curve[-1], flush=True)
            control.should_training_stop = control.should_training_stop or loss <= job.get("target", 0.0)
            self.started += time.perf_counter() - paused
            self.cpu += time.process_time() - cpu
            self.tokens = tokens

        def on_train_end(self, args: Any, state: Any, *_: Any, **__: Any) -> None:
            losses = [entry["loss"] for entry in state.log_history if "loss" in entry]
            measured = {
                "seconds": time.perf_counter() - self.started,
                "cpu_seconds": time.process_time() - self.cpu,
                "peak_mib": peak_mib(),
                "peak_mib_before": self.memory,
                "tokens": self.tokens,
                "steps": state.global_step,
                "loss": losses[-1] if losses else 0.0,
                "curve": self.curve,
            }
            path.write_text(json.dumps(measured))

    @torch.no_grad()
    def dev_loss(model: Any, tokens: Path) -> float:
        """Mean loss of the answer tokens, computed in the same way for every tool: one question at a time."""
        import numpy

        causal = model.get_base_model() if hasattr(model, "get_base_model") else model
        was_training = causal.training
        causal.eval()
        losses = []
        with numpy.load(tokens) as examples, torch.autocast("cpu", torch.bfloat16, job["precision"] == "bf16"):
            for name in examples:
                prompt, ids = int(name.partition("-")[2]), torch.from_numpy(examples[name]).long()
                hidden = causal.model(input_ids=ids[None], use_cache=False).last_hidden_state[0, prompt - 1 : -1]
                logits = causal.lm_head(hidden).float()
                losses.append(torch.nn.functional.cross_entropy(logits, ids[prompt:], reduction="none"))
        causal.train(was_training)
        return float(torch.cat(losses).mean())

    def peak_mib() -> float:
        if torch.cuda.is_available():
            return torch.cuda.max_memory_allocated() / 2**20
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024

    torch.set_flush_denormal(True)  # this project does it too; only packing is compared
    return Meter()


def run_chatmetrics(job: dict[str, Any]) -> None:
    from chatmetrics.components.storage.files import sha256_of
    from chatmetrics.components.train import fine_tune
    from chatmetrics.components.train.job import TrainingJob
    from chatmetrics.components.train.settings import TrainSettings

    trainer = fine_tune.AnswerTrainer

    class Metered(trainer):  # type: ignore[misc, valid-type]
        def __init__(self, *args: Any, **kwargs: Any) -> None:
            super().__init__(*args, **kwargs)
            self.add_callback(meter(job))

    fine_tune.AnswerTrainer = Metered  # type: ignore[misc]
    output = Path(job["output"])
    (output / "checkpoints").mkdir(parents=True)
    settings = {
        "max_steps": job["steps"],
        "learning_rate": job["learning_rate"],
        "precision": job["precision"],
        "gradient_checkpointing": job["gradient_checkpointing"],
        "checkpoint_steps": 10**6,
        "checkpoint_minutes": 0,
        "lora_rank": job["lora_rank"],
        "lora_alpha": 2 * job["lora_rank"],
        "scheduler": job["scheduler"],
        "warmup_steps": job["warmup_steps"],
        **job["options"],
    }
    dataset = Path(job["dataset"])
    fine_tune.fine_tune(
        TrainingJob(
            settings=TrainSettings.model_validate(settings),
            dataset=dataset,
            dataset_sha256=sha256_of(dataset / "train.jsonl"),
            base_model=job["base"],
            base_fingerprint="",
            base_folder=Path(job["base"]),
            output=output / "adapter",
            checkpoints=output / "checkpoints",
            ending=output / "ending.json",
        )
    )


def run_trl(job: dict[str, Any]) -> None:
    """Train with TRL on the tokens of this project's cache."""
    import torch
    from datasets import Dataset
    from peft import LoraConfig
    from transformers import AutoModelForCausalLM, AutoTokenizer
    from trl import SFTConfig, SFTTrainer

    rows = [
        {"input_ids": ids, "labels": [-100] * prompt + ids[prompt:]}
        for ids, prompt in ((row["ids"], row["prompt_length"]) for row in Dataset.from_file(job["tokens"]))
    ]
    dtype = {"fp32": torch.float32, "bf16": torch.bfloat16}[job["precision"]]
    options = dict(job["options"])
    attention = options.pop("attention")
    arguments = SFTConfig(
        output_dir=job["output"],
        max_steps=job["steps"],
        learning_rate=job["learning_rate"],
        lr_scheduler_type=job["scheduler"],
        warmup_steps=job["warmup_steps"],
        max_length=2048,
        logging_steps=5,
        save_strategy="no",
        bf16=job["precision"] == "bf16",
        use_cpu=not torch.cuda.is_available(),
        gradient_checkpointing=job["gradient_checkpointing"],
        report_to="none",
        disable_tqdm=True,
        **options,
    )
    trainer = SFTTrainer(
        model=AutoModelForCausalLM.from_pretrained(job["base"], dtype=dtype, attn_implementation=attention),
        args=arguments,
        train_dataset=Dataset.from_list(rows),
        processing_class=AutoTokenizer.from_pretrained(job["base"]),
        peft_config=LoraConfig(
            task_type="CAUSAL_LM", r=job["lora_rank"], lora_alpha=2 * job["lora_rank"], target_modules="all-linear"
        ),
        callbacks=[meter(job)],
    )
    trainer.train()
    measured = json.loads(Path(job["measured"]).read_text())
    measured["examples"] = _examples_in(trainer, job["steps"], len(rows))
    Path(job["measured"]).write_text(json.dumps(measured))
    trainer.save_model(str(Path(job["output"]) / "adapter"))


def _examples_in(trainer: Any, steps: int, examples: int) -> float:
    """Examples trained on: the number of rows times the mean number of examples per packed row."""
    arguments = trainer.args
    rows = steps * arguments.per_device_train_batch_size * arguments.gradient_accumulation_steps
    return rows * examples / len(trainer.train_dataset)


def run_llamafactory(job: dict[str, Any]) -> None:
    from llamafactory.train.tuner import run_exp

    run_exp(
        {
            "stage": "sft",
            "do_train": True,
            "model_name_or_path": job["base"],
            "dataset_dir": job["dataset"],
            "dataset": "chatmetrics_train",
            "template": job["template"],
            "cutoff_len": 2048,
            "finetuning_type": "lora",
            "lora_target": "all",
            "lora_rank": job["lora_rank"],
            "lora_alpha": 2 * job["lora_rank"],
            "output_dir": str(Path(job["output"]) / "adapter"),
            "max_steps": job["steps"],
            "learning_rate": job["learning_rate"],
            "lr_scheduler_type": job["scheduler"],
            "warmup_steps": job["warmup_steps"],
            "per_device_train_batch_size": 2,
            "gradient_accumulation_steps": 8,
            "bf16": job["precision"] == "bf16",
            "disable_gradient_checkpointing": not job["gradient_checkpointing"],
            "logging_steps": 5,
            "save_strategy": "no",
            "report_to": "none",
            "overwrite_cache": True,
            **job["options"],
        },
        callbacks=[meter(job)],
    )


if __name__ == "__main__":
    globals()[f"run_{sys.argv[1]}"](json.loads(Path(sys.argv[2]).read_text()))
