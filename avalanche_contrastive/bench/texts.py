"""What the command line says about its commands."""

LIST_TEXT = """\
A row is one TOML file that says only what differs from the defaults: the method, and what was chosen for it. A suite is
a folder of them; _suite.toml in it says what all its rows have in common. The suites come with the package."""
RUN_TEXT = """\
Trains every row with every seed and writes one JSON per run into the folder --out as soon as the run ends. A run whose
JSON is there with the same config is skipped: after a kill, give the same command again. A run that was killed half-way
goes on after its last whole experience, to the same figures; meanwhile its state is in .checkpoints in that folder."""
RUN_EXAMPLES = """\
examples:
  %(prog)s                                     the main table of Split-Digits, seeds 0 to 2
  %(prog)s ssil replay --seeds 0-4 --jobs 2    two rows, five seeds, two processes
  %(prog)s --suite split_mnist --root ~/data   MNIST from (or downloaded to) ~/data
  %(prog)s --data photos.npz                   your own images: .npz or a folder per class
  %(prog)s mine.toml naive                     your own method beside a built-in one
  %(prog)s --on slurm --time 120 --cpus 2      the same matrix as a Slurm job array
  torchrun --nproc-per-node 2 -m avalanche_contrastive.bench run co2l    every run trained by two processes together"""
TUNE_TEXT = """\
Scores the same number of candidates for every row on validation images (the test images are not even loaded into the
stream), with seeds other than those of the results. The candidates are written to ROW.json in the folder --out as they
are scored, so a killed search goes on; the winner is written to ROW.toml beside it, ready for `run`. Rows are chosen by
final accuracy, retrieval methods (CSD) by final Recall@1. A suite's _suite.toml may change the search in its table
[tune]; a row's own TOML file may say in [tune.grid] what to try for its options."""
TUNE_EXAMPLES = """\
examples:
  %(prog)s ssil --candidates 4             four candidates for one row of Split-Digits
  %(prog)s mine.toml --set epochs=5        your own method; epochs are not searched then"""
FEATURES_TEXT = """\
Computes, once, what a frozen encoder gives for every image and for some augmented views of it, and writes it into one
file, a feature bank. Training a small network on it takes seconds. Streams read it: split_cifar100_frozen as
cifar100_bank.npz in --root, any other with `run --data BANK`. After a kill the same command goes on where it was."""
FEATURES_EXAMPLES = """\
examples:
  %(prog)s --data split_cifar100 --encoder efficientnet_lite0 --out ~/banks/cifar100_bank.npz
  %(prog)s --data photos/ --encoder resnet18 --views 2 --out photos.npz      torchvision's network and weights
  %(prog)s --data photos.npz --encoder mine:build --out bank.npz             any torch.nn.Module of your own"""
COMPARE_TEXT = """\
Compares rows of the same name in two folders: your own runs with those of this repository, or with earlier ones.
FOLDER/ROW is one row: it is compared with the row of that name in the other folder, else with every row there."""
EXPORT_TEXT = """\
Columns: suite, row, seed, experience, metric, value. Pandas reads it as it is."""
SPEED_TEXT = """\
Losses, training steps, growth over experiences, the read-out, fetching, augmentation and retrieval, each beside a bare
loop of the same mathematics or a library that does the same: processor time on one thread, in turns. Takes twenty
minutes; leave the machine alone meanwhile. What is not there, a library or a GPU, is left out, and it says so."""
REPORT_TEXT = """\
Writes one self-contained HTML page from the JSON files alone: tables, curves with bands, accuracy matrices, paired
comparisons, time and memory, the configs. --write makes RESULTS.md from the same files."""
