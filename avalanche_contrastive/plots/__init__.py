"""Pictures of what the metrics measure: each function draws on a matplotlib ``Axes`` that it is given, and returns it.

No figure is made, saved or shown here, and no global state of matplotlib is touched. Colours are Okabe and Ito's,
which the colour-blind can tell apart; whatever a colour says is said a second time, by a marker, a dash, a hatch or a
sign, so that the pictures can be read in grey.
"""

from avalanche_contrastive.plots.curves import plot_bias, plot_curves
from avalanche_contrastive.plots.images import plot_embedding, plot_retrieval, project
from avalanche_contrastive.plots.matrices import plot_compatibility, plot_matrix, plot_task_confusion

__all__ = [
    "plot_bias",
    "plot_compatibility",
    "plot_curves",
    "plot_embedding",
    "plot_matrix",
    "plot_retrieval",
    "plot_task_confusion",
    "project",
]
