"""What every page stands in: width, spacing, errors as sentences, empty states."""

from __future__ import annotations

import functools
import importlib
import re
from collections.abc import Callable
from typing import ParamSpec

import streamlit as st

from vmae.core.errors import VmaeError
from vmae.core.weights.files import ModelFile, list_files
from vmae.dashboard.settings import Settings
from vmae.dashboard.sources import Catalog, read_catalog
from vmae.experiments.layout import NO_MODELS

P = ParamSpec("P")

# Drawn here: a named symbol would be fetched from outside.
_ICON = (
    '<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 4 4"><rect width="4" height="4" fill="#1f6feb"/>'
    '<path d="M0 0h1v1H0zM2 1h1v1H2zM1 2h1v1H1zM3 3h1v1H3z" fill="#fff"/></svg>'
)

# Streamlit leaves room for a narrow article; these pages are wide and short.
_STYLE = """
<style>
  .stMainBlockContainer { padding: 4.2rem 2rem 1.5rem; max-width: 2200px; }
  .stMainBlockContainer h1 { font-size: 1.55rem; padding: 0; }
  .stMainBlockContainer h3 { font-size: 1.1rem; padding-bottom: 0; }
</style>
"""


def page_frame() -> None:
    """Page title and width; called once per run, before anything else."""
    st.set_page_config(page_title="vmae", page_icon=_ICON, layout="wide")
    st.html(_STYLE)


def guarded(page: Callable[P, None]) -> Callable[P, None]:
    """The page (or a fragment of one), with errors a user can cause shown as the sentence they are."""

    @functools.wraps(page)
    def run(*args: P.args, **kwargs: P.kwargs) -> None:
        try:
            page(*args, **kwargs)
        except VmaeError as e:
            show_error(e)

    return run


def page_of(name: str) -> Callable[[], None]:
    """`views.<name>.page`, guarded, imported when it is opened: the first page waits for no other."""

    def page() -> None:
        module = importlib.import_module(f"vmae.dashboard.views.{name}")
        guarded(module.page)()

    page.__name__ = name
    return page


def plain(text: str) -> str:
    """Text that somebody else wrote (a file's name, a run's) for Markdown: shown as it is, without links."""
    return re.sub(r"([\\`*_{}\[\]()#!|<>~$])", r"\\\1", text)


def show_error(error: VmaeError) -> None:
    """One red box with the error's sentence."""
    text = str(error)
    st.error(plain(text[:1].upper() + text[1:]), icon=":material/error:")


def empty_state(title: str, text: str, commands: dict[str, str]) -> None:
    """What a page shows while there is nothing to show: why, and which command changes that.

    `commands` maps a command line to what it does.
    """
    with st.container(border=True):
        st.subheader(title, anchor=False)
        st.markdown(text)
        for command, effect in commands.items():
            st.markdown(effect)
            st.code(command, language="bash")


@st.cache_data(ttl=3, max_entries=4, show_spinner=False)
def _catalog(settings: Settings) -> Catalog:
    return read_catalog(settings, _files(settings))


@st.cache_data(ttl=30, max_entries=4, show_spinner=False)
def _files(settings: Settings) -> list[ModelFile]:
    return list_files((*settings.checkpoints, str(settings.store.runs_dir)), NO_MODELS)


def catalog(settings: Settings) -> Catalog:
    """What there is to choose from: the store is read at most every 3 s, its folders at most every 30 s."""
    return _catalog(settings)
