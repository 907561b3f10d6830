"""The registry: what it reads from sources is what Python says of the classes, and every entry is whole."""

import inspect
import subprocess
import sys
from pathlib import Path
from typing import Literal, get_args, get_origin

import pytest
from avalanche.training.templates import SupervisedTemplate

import avalanche_contrastive
from avalanche_contrastive.plugins import MethodPlugin
from avalanche_contrastive.registry import METHODS, load, parameters_of

ROOT = Path(avalanche_contrastive.__file__).parents[1]
PLAIN = (bool, int, float, str)


def plain_parameters(callable_):
    """{name: (kind, default as a config says it, whether None is allowed)}, by inspection."""
    found = {}
    for name, parameter in inspect.signature(callable_).parameters.items():
        annotation = parameter.annotation
        parts = (annotation,) if get_origin(annotation) is Literal else get_args(annotation) or (annotation,)
        kinds = [str if get_origin(kind) is Literal else kind for kind in parts if kind is not type(None)]
        if parameter.default is parameter.empty or len(kinds) != 1 or kinds[0] not in PLAIN:
            continue
        default = kinds[0]() if parameter.default is None else parameter.default
        found[name] = kinds[0], default, type(None) in get_args(annotation)
    return found


@pytest.mark.parametrize("name", METHODS)
def test_options_read_from_the_source_are_those_of_the_signatures(name):
    method = METHODS[name]
    for place in (method.plugin, method.build):
        read = {key: (p.kind, p.default, p.optional) for key, p in parameters_of(place).items()}
        assert read == plain_parameters(load(place))
    assert set(method.options) >= {*parameters_of(method.plugin)} - {"mem_size"}
    assert all(type(default) in PLAIN for default in method.options.values())


@pytest.mark.parametrize("name", METHODS)
def test_every_entry_is_whole(name):
    method = METHODS[name]
    assert issubclass(load(method.plugin), MethodPlugin)
    assert issubclass(load(method.strategy), SupervisedTemplate)
    assert (ROOT / method.card).read_text(encoding="utf-8").startswith("# ")
    assert (ROOT / "avalanche_contrastive" / "bench" / "configs" / "split_digits" / f"{name}.toml").is_file()
    assert method.about
    assert {key.removeprefix("options.") for key in method.grid if "." in key} <= set(method.options)
    assert load(method.plugin).__name__ in avalanche_contrastive.__all__
    assert load(method.strategy).__name__ in avalanche_contrastive.__all__


def test_none_stands_in_a_config_as_zero_or_an_empty_string():
    options = METHODS["co2l"].options
    assert (options["base_temperature"], options["batch_size_mem"]) == (0.07, 0)
    keywords = METHODS["co2l"].keywords({"base_temperature": 0.0, "batch_size_mem": 8, "weight": 0.0})
    assert keywords == {"base_temperature": None, "batch_size_mem": 8, "weight": 0.0}
    assert METHODS["csd"].keywords({"feature_layer": ""}) == {"feature_layer": None}


def test_an_unknown_option_or_name_is_refused():
    with pytest.raises(TypeError, match=r"no option 'tempreature'\. Its options: mem_size, batch_size_mem"):
        METHODS["ssil"].keywords({"tempreature": 2.0})
    with pytest.raises(ValueError, match=r"plugins\.ssil defines no class or function 'Nobody'"):
        parameters_of("avalanche_contrastive.plugins.ssil:Nobody")
    with pytest.raises(ValueError, match="there is no package 'nowhere'"):
        parameters_of("nowhere.plugin:Nobody")


def test_reading_the_registry_costs_no_import_of_torch():
    code = (
        "import sys; from avalanche_contrastive.registry import METHODS; [m.options for m in METHODS.values()]; "
        "sys.exit('torch' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
