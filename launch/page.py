"""Self-contained HTML pages: templates, and pictures and films as data URIs.

A page needs nothing else: no script, no request, so it can be mailed, archived and opened anywhere.
"""

from __future__ import annotations

import base64
from pathlib import Path

import jinja2
from markupsafe import Markup

from launch.plots import Plot

_TEMPLATES = Path(__file__).with_name("templates")


def page_template(name: str) -> jinja2.Template:
    """Returns a template; inside it, ``picture``, ``png`` and ``video`` embed what they are given."""
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(_TEMPLATES),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.globals.update(picture=_picture, png=_png, video=_video)
    return environment.get_template(name)


def _data_uri(content: bytes, kind: str) -> str:
    return f"data:{kind};base64,{base64.b64encode(content).decode('ascii')}"


def _picture(plot: Plot) -> Markup:
    """Returns a plot as ``<picture>`` that follows the reader's colour scheme."""
    return Markup(
        '<picture><source media="(prefers-color-scheme: dark)" srcset="{}">'
        '<img class="plot" src="{}" alt="{}"></picture>'
    ).format(_data_uri(plot.dark, "image/png"), _data_uri(plot.light, "image/png"), plot.alt)


def _png(content: bytes, alt: str) -> Markup:
    """Returns a PNG as ``<img>``."""
    return Markup('<img src="{}" alt="{}">').format(_data_uri(content, "image/png"), alt)


def _video(content: bytes) -> Markup:
    """Returns an MP4 as a ``<video>`` that plays by itself, in a loop, without sound."""
    return Markup('<video src="{}" controls autoplay loop muted playsinline></video>').format(
        _data_uri(content, "video/mp4")
    )
