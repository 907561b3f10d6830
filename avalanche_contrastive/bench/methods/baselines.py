"""Avalanche's strategies, and where Avalanche 0.6 has a defect that matters here, repaired ones; `penalties` has more.

Options are named as Avalanche names them, and default to its defaults where it has any that the paper does not
contradict. TOML has no "none": 0 stands for it where an option says so.
"""

from typing import Any

from avalanche.models import MlpVAE, SCRModel, VAE_loss
from avalanche.training import ER_ACE, MER, MaskedCrossEntropy
from avalanche.training.plugins import (
    CWRStarPlugin,
    EvaluationPlugin,
    FromScratchTrainingPlugin,
    GenerativeReplayPlugin,
    RARPlugin,
    ReplayPlugin,
    TrainGeneratorAfterExpPlugin,
)
from avalanche.training.plugins.cope import L2Normalization
from avalanche.training.supervised import DER, SCR, Naive
from torch import nn
from torch.optim import Adam

from avalanche_contrastive.bench.methods.heads import head_of
from avalanche_contrastive.bench.methods.networks import LINEAR, Built, Classifier, Setting, projection
from avalanche_contrastive.bench.methods.repaired import (
    LinearSLDA,
    RepairedERAML,
    RepairedFeatureReplay,
    RepairedLaMAML,
    RepairedSCR,
    RepairedVAETraining,
    TaskBlind,
    UniformCumulative,
    UniformGDumb,
    UniformICaRL,
    UniformJoint,
)
from avalanche_contrastive.bench.methods.repaired_plugins import RepairedBiC, StoredMIR, StreamGSS, WholeCoPE

NEAREST_MEAN = "nearest class mean of the stored images"


# ---- ends of the scale


def naive(s: Setting) -> Built:
    """Plain fine-tuning, the lower end."""
    return Built(s.naive(), LINEAR)


def joint(s: Setting) -> Built:
    """All classes at once, the upper end."""
    return Built(s.strategy(UniformJoint), LINEAR)


def cumulative(s: Setting) -> Built:
    """All data so far at every experience."""
    return Built(s.strategy(UniformCumulative), LINEAR)


def from_scratch(s: Setting) -> Built:
    """A new network for every experience, below the lower end."""
    return Built(s.naive(FromScratchTrainingPlugin()), LINEAR)


# ---- replay


def replay(s: Setting, *, batch_size_mem: int = 32, head: str = "linear") -> Built:
    """Cross-entropy on the new data and a replay batch (ReplayPlugin).

    Args:
        batch_size_mem: rows of the memory in each step.
        head: one of HEADS; "simplex" is fixed, with a direction for each class from the start.
    """
    layer, readout = head_of(head, "replay")
    plugin = ReplayPlugin(s.config.memory, batch_size=s.config.batch_size, batch_size_mem=batch_size_mem)
    return Built(s.naive(plugin, head=layer), readout)


def er_ace(s: Setting, *, batch_size_mem: int = 32) -> Built:
    """Replay with asymmetric cross-entropy."""
    return Built(_with_memory(s, ER_ACE, batch_size_mem=batch_size_mem), LINEAR)


def er_aml(
    s: Setting, *, temp: float = 0.1, base_temp: float = 0.07, same_task_neg: bool = True, batch_size_mem: int = 32
) -> Built:
    """Replay with asymmetric metric learning; repaired: endless loop, axis of the softmax."""
    if s.config.memory < s.classes:
        raise ValueError(
            f"er_aml needs a stored image of each class to contrast with, but a memory of {s.config.memory} cannot "
            f"hold {s.classes}: take a larger memory"
        )
    model = s.classifier()
    strategy = s.strategy(
        RepairedERAML,
        model=model,
        feature_extractor=model.encoder,
        mem_size=s.config.memory,
        batch_size_mem=batch_size_mem,
        temp=temp,
        base_temp=base_temp,
        same_task_neg=same_task_neg,
    )
    return Built(strategy, LINEAR)


def der(s: Setting, *, alpha: float = 0.1, batch_size_mem: int = 32) -> Built:
    """Dark experience replay: mean squared error to stored logits."""
    return derpp(s, alpha=alpha, beta=0.0, batch_size_mem=batch_size_mem)


def derpp(s: Setting, *, alpha: float = 0.1, beta: float = 0.5, batch_size_mem: int = 32) -> Built:
    """Dark experience replay with labels.

    Needs a head of fixed width, as all of a setting's are.
    """
    return Built(_with_memory(s, DER, alpha=alpha, beta=beta, batch_size_mem=batch_size_mem), LINEAR)


def mir(s: Setting, *, subsample: int = 200, batch_size_mem: int = 32) -> Built:
    """Replay of what the step would interfere with most; repaired: replays the last experience, too."""
    return Built(s.naive(StoredMIR(batch_size_mem, s.config.memory, subsample)), LINEAR)


def gdumb(s: Setting, *, memory_epochs: int = 60) -> Built:
    """A new network on the memory alone, with passes of its own number.

    Args:
        memory_epochs: passes over the memory, where all others have the config's epochs over an experience; 0: as many
            as those.
    """
    epochs = memory_epochs or s.config.epochs
    return Built(s.strategy(UniformGDumb, mem_size=s.config.memory, train_epochs=epochs), LINEAR)


def gss(s: Setting, *, mem_strength: int = 10, batch_size_mem: int = 32) -> Built:
    """Replay of images with unlike gradients; repaired: chooses from each image once, clean gradients.

    Args:
        mem_strength: batches of the memory whose gradients an image's is compared with.
        batch_size_mem: rows of the memory in each step.
    """
    plugin = StreamGSS(s.config.memory, mem_strength, s.image_shape, batch_size_mem)
    strategy = s.naive()
    strategy.plugins.insert(0, plugin)  # it stores the images as they come and replays before any augmentation
    return Built(strategy, LINEAR)


def rar(
    s: Setting, *, batch_size_mem: int = 32, beta_coef: float = 0.4, epsilon_fgsm: float = 0.0314, opt_lr: float = 0.1
) -> Built:
    """Replay with adversarial copies of the stored images (RARPlugin)."""
    plugin = RARPlugin(batch_size_mem, s.config.memory, opt_lr=opt_lr, beta_coef=beta_coef, epsilon_fgsm=epsilon_fgsm)
    return Built(s.naive(plugin), LINEAR)


def mer(
    s: Setting, *, n_inner_steps: int = 1, beta: float = 0.1, gamma: float = 1.0, batch_size_mem: int = 10
) -> Built:
    """Meta-experience replay: a step per image; slow, and no augmentation reaches it.

    Args:
        n_inner_steps: rounds through each batch and its replayed rows. Avalanche's 5, and gamma 0.1, are for single
            images.
        beta: part of the way that a round goes.
        gamma: part of the way that a batch goes; 1: all of it.
    """
    strategy = _with_memory(s, MER, n_inner_steps=n_inner_steps, beta=beta, gamma=gamma, batch_size_mem=batch_size_mem)
    return Built(strategy, LINEAR)


def la_maml(
    s: Setting,
    *,
    n_inner_updates: int = 5,
    second_order: bool = True,
    alpha_init: float = 0.1,
    lr_alpha: float = 0.25,
    grad_clip_norm: float = 1.0,
    batch_size_mem: int = 10,
) -> Built:
    """Look-ahead MAML with a rate per weight; no augmentation reaches it; repaired: batches of any size.

    The config's rate is not used.

    Args:
        batch_size_mem: rows of the memory in each step.
    """
    strategy = s.strategy(
        RepairedLaMAML,
        model=TaskBlind(s.classifier()),
        n_inner_updates=n_inner_updates,
        second_order=second_order,
        alpha_init=alpha_init,
        lr_alpha=lr_alpha,
        grad_clip_norm=grad_clip_norm,
        max_buffer_size=s.config.memory,
        buffer_mb_size=batch_size_mem,
    )
    return Built(strategy, LINEAR)


def feature_replay(s: Setting, *, batch_size_mem: int = 32) -> Built:
    """Replay of stored features in the head (PR-ACE); repaired: endless loop, evaluation without draws.

    Args:
        batch_size_mem: rows of the memory in each step.
    """
    criterion = MaskedCrossEntropy(mask="new")
    strategy = _with_memory(
        s, RepairedFeatureReplay, batch_size_mem=batch_size_mem, last_layer_name="head", criterion=criterion
    )
    return Built(strategy, LINEAR)


def generative_replay(s: Setting, *, latent: int = 16, generator_lr: float = 1e-3, generator_epochs: int = 0) -> Built:
    """Replay of images from an autoencoder that is trained along; repaired: takes any number of images.

    Args:
        latent: width of the autoencoder's code; Avalanche's default autoencoder has 2.
        generator_lr: of its Adam.
        generator_epochs: passes over each experience; 0: as many as the classifier's.
    """
    device = s.device
    generator = MlpVAE(s.image_shape, nhid=latent, n_classes=s.classes, device=device)
    trainer = RepairedVAETraining(
        model=generator,
        optimizer=Adam(generator.parameters(), lr=generator_lr),
        criterion=VAE_loss,
        train_mb_size=s.config.batch_size,
        train_epochs=generator_epochs or s.config.epochs,
        device=device,
        plugins=[GenerativeReplayPlugin()],
        evaluator=EvaluationPlugin(loggers=[]),
    )
    return Built(s.naive(TrainGeneratorAfterExpPlugin(), GenerativeReplayPlugin(generator_strategy=trainer)), LINEAR)


# ---- exemplars and prototypes


def icarl(s: Setting) -> Built:
    """Herded exemplars, sigmoid distillation, nearest class mean."""
    encoder = s.encoder()
    head = nn.Linear(encoder.features, s.classes)
    keywords = s.keywords()
    del keywords["criterion"]
    strategy = UniformICaRL(
        feature_extractor=encoder,
        classifier=head,
        optimizer=s.optimizer([*encoder.parameters(), *head.parameters()]),
        memory_size=s.config.memory,
        buffer_transform=None,
        fixed_memory=True,
        **keywords,
    )
    return Built(strategy, NEAREST_MEAN)


def bic(
    s: Setting,
    *,
    val_percentage: float = 0.1,
    T: float = 2.0,
    lamb: float = 0.0,
    stage_2_epochs: int = 200,
    stage_2_lr: float = 0.1,
) -> Built:
    """Replay, distillation and a bias correction; repaired: today's torch, softmax over classes, size of the memory.

    Args:
        val_percentage: share of the memory that the correction is fitted to.
        T: temperature of the distillation.
        lamb: weight of the distillation; 0: the share of old classes, as the paper has it.
        stage_2_epochs: of the correction.
        stage_2_lr: of the correction.
    """
    plugin = RepairedBiC(
        mem_size=s.config.memory,
        val_percentage=val_percentage,
        temperature=T,
        lamb=lamb or -1,
        stage_2_epochs=stage_2_epochs,
        lr=stage_2_lr,
    )
    return Built(s.naive(plugin), "linear head, bias of the newest classes corrected")


def scr(s: Setting, *, temperature: float = 0.1, batch_size_mem: int = 32, projection_size: int = 64) -> Built:
    """Supervised contrastive replay as Avalanche ships it.

    Args:
        projection_size: width of the projection.
    """
    if s.config.memory < s.classes:
        raise ValueError(
            f"scr as Avalanche ships it needs a stored image of each class, but a memory of {s.config.memory} cannot "
            f"hold {s.classes}: take a larger memory, or scr_repaired"
        )
    return _scr(s, SCR, temperature, batch_size_mem, projection_size, unit_length=False)


def scr_repaired(s: Setting, *, temperature: float = 0.1, batch_size_mem: int = 32, projection_size: int = 64) -> Built:
    """SCR with fresh class means and a unit-length projection, see RepairedSCR.

    Args:
        projection_size: width of the projection.
    """
    return _scr(s, RepairedSCR, temperature, batch_size_mem, projection_size, unit_length=True)


def _scr(
    s: Setting, strategy: Any, temperature: float, batch_size_mem: int, projection_size: int, *, unit_length: bool
) -> Built:
    encoder = s.encoder()
    model = SCRModel(encoder, projection(encoder.features, projection_size, unit_length=unit_length))
    keywords = s.keywords()
    del keywords["criterion"]
    built = strategy(
        model=model,
        optimizer=s.optimizer(model.parameters()),
        augmentations=s.augmentation,
        mem_size=s.config.memory,
        temperature=temperature,
        batch_size_mem=batch_size_mem,
        **keywords,
    )
    return Built(built, NEAREST_MEAN)


def cope(s: Setting, *, p_size: int = 100, alpha: float = 0.99, T: float = 0.1, batch_size_mem: int = 32) -> Built:
    """Prototypes that move with every batch; repaired: trains on more than one batch of each experience.

    Args:
        p_size: width of the prototypes.
        alpha: their momentum.
        T: temperature of the contrast.
        batch_size_mem: rows of the memory in each step.
    """
    encoder = s.encoder()
    # A linear layer that ends in the prototypes' space, normalised: what the plugin would make of a classifier.
    model = nn.Sequential(Classifier(encoder, nn.Linear(encoder.features, p_size)), L2Normalization())
    plugin = WholeCoPE(
        device=s.device,
        batch_size_mem=batch_size_mem,
        mem_size=s.config.memory,
        n_classes=s.classes,
        p_size=p_size,
        alpha=alpha,
        T=T,
    )
    strategy = s.strategy(Naive, plugin, model=model, criterion=plugin.ppp_loss)
    return Built(strategy, "nearest of the evolved prototypes")


def slda(s: Setting, *, shrinkage_param: float = 1e-4, streaming_update_sigma: bool = True) -> Built:
    """Streaming linear discriminant analysis on an untrained network; repaired: classes to come do not win.

    A second epoch adds nothing.
    """
    model = s.classifier()
    strategy = LinearSLDA(
        model=model,
        shrinkage_param=shrinkage_param,
        streaming_update_sigma=streaming_update_sigma,
        **s.keywords(train_epochs=1),
    )
    strategy.optimizer = s.optimizer(model.parameters())  # never steps; schedules ask for one
    return Built(strategy, "linear discriminant analysis")


def cwr(s: Setting) -> Built:
    """CWR*: the network is frozen after the first experience, the head's rows are consolidated."""
    model = s.classifier()
    plugin = CWRStarPlugin(model, "head", freeze_remaining_model=True)
    return Built(s.strategy(Naive, plugin, model=model), LINEAR)


def _with_memory(s: Setting, strategy: Any, *, batch_size_mem: int, **options: Any) -> Any:
    # DER and ER-ACE replay nothing, without an error, where a replay batch is larger than the memory.
    rows = min(batch_size_mem, s.config.memory)
    return s.strategy(strategy, mem_size=s.config.memory, batch_size_mem=rows, **options)
