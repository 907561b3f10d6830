"""The three methods as Avalanche plugins, each alone under ``Naive`` the whole method, and the papers' schedules."""

from avalanche_contrastive.plugins.co2l import Co2LPlugin
from avalanche_contrastive.plugins.csd import CSDPlugin
from avalanche_contrastive.plugins.exemplars import FirstExemplarsSelection, RandomRemainderBuffer
from avalanche_contrastive.plugins.method import MethodPlugin
from avalanche_contrastive.plugins.schedule import ExperienceSchedule
from avalanche_contrastive.plugins.ssil import SSILPlugin

__all__ = [
    "CSDPlugin",
    "Co2LPlugin",
    "ExperienceSchedule",
    "FirstExemplarsSelection",
    "MethodPlugin",
    "RandomRemainderBuffer",
    "SSILPlugin",
]
