"""The recipe's `train` section."""

from typing import Literal

from pydantic import Field

from chatmetrics.components.settings import Settings

FLEX_CAPABILITY = 8.0  # compute capability of the GPUs that FlexAttention is compiled for


class TrainSettings(Settings):
    """How the adapter is trained. The defaults are the published settings."""

    learning_rate: float = Field(5e-5, gt=0, description="Peak learning rate of AdamW")
    epochs: float = Field(10, gt=0, description="Passes over the dataset")
    max_steps: int = Field(0, ge=0, description="Optimizer steps, instead of epochs; 0 trains for `epochs`")
    batch_size: int = Field(
        2,
        ge=1,
        description="Examples that a device computes at once if all have the maximum length. With packing only its "
        "product with gradient_accumulation and pack_tokens matter",
    )
    gradient_accumulation: int = Field(
        8, ge=1, description="An optimizer step takes batch_size x gradient_accumulation x processes examples"
    )
    cutoff_length: int = Field(
        2048,
        ge=16,
        description="Maximum tokens of prompt and answer together, with BOS and EOS. A longer example is an error; "
        "nothing is ever cut",
    )
    lora_rank: int = Field(8, ge=1, description="Rank of the adapter's matrices")
    lora_alpha: int = Field(0, ge=0, description="Scale of the adapter, multiplied by its rank; 0 is twice the rank")
    lora_dropout: float = Field(0.0, ge=0, lt=1, description="Dropout of the adapter's inputs")
    lora_targets: Literal["all-linear"] | tuple[str, ...] = Field(
        "all-linear",
        description="Names of the modules that get an adapter; all-linear is every linear layer except lm_head",
    )
    precision: Literal["bf16", "fp16", "fp32"] = Field(
        "bf16",
        description="Precision of the base's weights and of the arithmetic; the adapter's weights are always fp32. A "
        "GPU without bf16 trains in fp16, a CPU that does not multiply in bf16 in fp32, and either is reported",
    )
    quantize_base: Literal["none", "nf4"] = Field(
        "none",
        description="nf4 stores the base's layers in 4 bits (QLoRA), so that a 7B fits a small GPU; slower and "
        "slightly less exact. The adapter is merged with the base in full precision",
    )
    scheduler: Literal["linear", "cosine", "constant", "constant_with_warmup"] = Field(
        "linear", description="Schedule of the learning rate"
    )
    warmup_steps: int = Field(0, ge=0, description="Steps until the learning rate reaches its peak")
    weight_decay: float = Field(0.0, ge=0, description="Weight decay of AdamW")
    max_grad_norm: float = Field(1.0, gt=0, description="Gradients with a larger norm are scaled down to it")
    gradient_checkpointing: bool = Field(
        False, description="Compute activations again in the backward pass: less memory, a third more arithmetic"
    )
    packing: bool = Field(
        True,
        description="Compute examples of a step that share a prefix as one tree, the prefix once. Exact, and faster",
    )
    pack_tokens: int = Field(
        0,
        ge=0,
        description="With packing, maximum tokens that a device computes at once; 0 is batch_size x cutoff_length, the "
        "maximum of a padded batch",
    )
    questions_per_schema: int = Field(
        8,
        ge=1,
        description="How many questions of a database follow each other in the otherwise random order. With more, more "
        "questions of a step share a schema and fewer schemas are in a step; 1 is a completely random order",
    )
    attention: Literal["auto", "sdpa", "flex_attention", "flash_attention_2"] = Field(
        "auto",
        description="Attention implementation. auto is flex_attention for packing on GPUs with compute capability 8.0 "
        "or higher if it can be compiled there, else sdpa; flash_attention_2 works only without packing",
    )
    group_by_length: bool = Field(
        False,
        description="Without packing, form steps of examples of similar length: less padding, but a less random order",
    )
    workers: int = Field(
        0,
        ge=0,
        description="Data loader processes per training process; 0 is one on a GPU, which then does not wait for "
        "packs, and none on a CPU",
    )
    processes: int = Field(1, ge=1, description="Training processes on this machine, one per GPU")
    fsdp: bool = Field(
        False,
        description="Shard the base's weights across the processes, for a base that does not fit on one GPU; slower",
    )
    logging_steps: int = Field(5, ge=1, description="Steps between two points of the loss curve")
    checkpoint_steps: int = Field(100, ge=1, description="Steps between two checkpoints")
    # A 7B's checkpoint has 1.9 GB at rank 64. Writing and hashing it took ten seconds, less than 2 % of ten minutes.
    checkpoint_minutes: float = Field(
        10,
        ge=0,
        description="Maximum minutes between two checkpoints: one is also saved after the first step that ends so long "
        "after the previous one; 0 saves by steps only",
    )
    # With a single one, a run killed while it replaces its checkpoint would have none.
    keep_checkpoints: int = Field(2, ge=2, description="How many of the newest checkpoints are kept")
    seed: int = Field(42, description="Seed of the adapter's initial weights and of the order of the examples")
    early_stopping: Literal["none", "loss", "accuracy"] = Field(
        "none",
        description="What is measured on dev questions during training: the loss of their gold answers, or the "
        "accuracy of the model's own answers. The best adapter is kept, and training ends when it no longer improves",
    )
    evaluation_steps: int = Field(50, ge=1, description="With early stopping, steps between two measurements")
    evaluation_questions: int = Field(
        64, ge=1, description="With early stopping, how many dev questions are measured; the seed chooses them"
    )
    patience: int = Field(
        3, ge=1, description="With early stopping, measurements without improvement after which training ends"
    )
    report_to: tuple[Literal["tensorboard", "mlflow"], ...] = Field(
        (), description="Trackers that transformers reports to as well: TensorBoard (files), MLflow (a server)"
    )
    mlflow_uri: str = Field(
        "", description="URI of MLflow's tracking server, without credentials; if empty, MLFLOW_TRACKING_URI is used"
    )

    @property
    def examples_per_step(self) -> int:
        """Examples that an optimizer step takes, of all processes together."""
        return self.batch_size * self.gradient_accumulation * self.processes
