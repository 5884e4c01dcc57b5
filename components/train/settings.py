"""The recipe's `train` section."""

from typing import Literal

from pydantic import Field

from chatmetrics.components.settings import Settings

FLEX_CAPABILITY = 8.0  # compute capability of the GPUs that FlexAttention is compiled for


class TrainSettings(Settings):
    """How the adapter is trained. The defaults are the published settings."""

    learning_rate: float = Field(5e-5, gt=0, description="peak learning rate of AdamW")
    epochs: float = Field(10, gt=0, description="passes over the dataset")
    max_steps: int = Field(0, ge=0, description="optimizer steps instead of epochs; 0 goes by epochs")
    batch_size: int = Field(2, ge=1, description="examples a device takes at once, of the longest that are allowed")
    gradient_accumulation: int = Field(
        8, ge=1, description="so many times batch_size, times processes, is an optimizer step's examples"
    )
    cutoff_length: int = Field(
        2048,
        ge=16,
        description="most tokens of prompt and answer together, BOS and EOS too; more is an error",
    )
    lora_rank: int = Field(8, ge=1, description="rank of the adapter's matrices")
    lora_alpha: int = Field(0, ge=0, description="scale of the adapter times its rank; 0 is twice the rank")
    lora_dropout: float = Field(0.0, ge=0, lt=1, description="dropout before the adapter")
    lora_targets: Literal["all-linear"] | tuple[str, ...] = Field(
        "all-linear", description="names of the modules that get an adapter; all-linear is every Linear but lm_head"
    )
    precision: Literal["bf16", "fp16", "fp32"] = Field(
        "bf16", description="of the base's weights and the arithmetic; the adapter's weights are always fp32"
    )
    quantize_base: Literal["none", "nf4"] = Field(
        "none",
        description="nf4 keeps the base's layers in 4 bits (QLoRA), with which a 7B fits a small GPU; slower, and a "
        "little less exact",
    )
    scheduler: Literal["linear", "cosine", "constant", "constant_with_warmup"] = Field(
        "linear", description="course of the learning rate"
    )
    warmup_steps: int = Field(0, ge=0, description="steps until the learning rate is at its peak")
    weight_decay: float = Field(0.0, ge=0, description="of AdamW")
    max_grad_norm: float = Field(1.0, gt=0, description="gradients of a larger norm are scaled down to it")
    gradient_checkpointing: bool = Field(
        False, description="compute activations anew in the backward pass: less memory, a third more arithmetic"
    )
    packing: bool = Field(
        True,
        description="examples of a step that begin alike are computed as one tree, what they share once: exact, faster",
    )
    pack_tokens: int = Field(
        0, ge=0, description="most tokens a device takes at once with packing; 0 is batch_size times cutoff_length"
    )
    questions_per_schema: int = Field(
        8,
        ge=1,
        description="how many questions of a database follow each other, in an order otherwise random: more share a "
        "schema in one step, fewer schemas are in a step; 1 is wholly random",
    )
    attention: Literal["auto", "sdpa", "flex_attention", "flash_attention_2"] = Field(
        "auto",
        description="implementation; auto is flex_attention for packs on GPUs that compile it (capability 8.0), else "
        "sdpa; flash_attention_2 only without packing",
    )
    group_by_length: bool = Field(
        False, description="without packing: steps of examples of like length; less padding, but a less random order"
    )
    workers: int = Field(
        0,
        ge=0,
        description="data loader processes per training process; 0: one on a GPU, which need not wait, else none",
    )
    processes: int = Field(1, ge=1, description="training processes on this machine, one per GPU")
    fsdp: bool = Field(
        False, description="deal the base's weights out to the processes, for one that does not fit on one GPU; slower"
    )
    logging_steps: int = Field(5, ge=1, description="steps from one point of the loss curve to the next")
    checkpoint_steps: int = Field(100, ge=1, description="steps from one checkpoint to the next")
    # With a single one, a run killed while it replaces its checkpoint would have none.
    keep_checkpoints: int = Field(2, ge=2, description="newest checkpoints that are kept")
    seed: int = Field(42, description="decides the adapter's first weights and the order of the examples")

    @property
    def examples_per_step(self) -> int:
        """Of all processes together."""
        return self.batch_size * self.gradient_accumulation * self.processes

    early_stopping: Literal["none", "loss", "accuracy"] = Field(
        "none",
        description="what dev questions are measured by while training: loss of their answers, or accuracy of what "
        "the model's own answers return; the best adapter is kept, and training ends when none gets better",
    )
    evaluation_steps: int = Field(50, ge=1, description="steps from one such measurement to the next")
    evaluation_questions: int = Field(64, ge=1, description="dev questions that are measured, drawn by the seed")
    patience: int = Field(3, ge=1, description="measurements without a better one after which training ends")
    report_to: tuple[Literal["tensorboard", "mlflow"], ...] = Field(
        (), description="where transformers reports progress to as well: files for TensorBoard, a server of MLflow"
    )
    mlflow_uri: str = Field(
        "", description="of MLflow's tracking server, without credentials; empty: MLFLOW_TRACKING_URI says it"
    )
