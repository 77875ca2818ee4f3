"""The demo's page, by Gradio: upload or choose a video, and see the model's output. It asks no other server."""

from __future__ import annotations

import os
import socket
import tempfile
import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from mam2.config import UserError
from mam2.pictures.page import in_markdown
from mam2.pictures.timeline import MAX_LABELS
from mam2.use.demo.shown import Demo, Picture, alike, classified, in_words, load_demo, moving_predictions, problem_of

CSS = """
.grid-container { grid-template-columns: repeat(auto-fill, minmax(140px, 1fr)) !important; }
.caption-label { max-width: 100% !important; white-space: normal !important; }
"""
"""Galleries with as many columns as fit into the window, and whole captions."""


def demo(
    source: str | Path,
    *,
    features: str | Path = "",
    videos: str | Path = "",
    host: str = "127.0.0.1",
    port: int = 0,
) -> None:
    """Serves a page on which a model can be tried, and prints its address, until it is interrupted.

    Args:
        source: the folder of a pre-training run, to show its predictions; of a fine-tuning run, to show classes; or
            another source of `load_encoder`, to show attention.
        features: a file that `embed` wrote with the same encoder, to show its most similar windows.
        videos: a folder of videos, a CSV with path, or a video, to choose from.
        host: "127.0.0.1" is for this machine only; "0.0.0.0" for all that can reach it, as on a Hugging Face Space.
        port: port of the page; 0 is the first free one from 7860 up.

    Raises:
        UserError: Gradio is not installed, a port that can't be used; see `load_demo`.
    """
    gradio = _gradio()
    _check_port(host, port)
    with tempfile.TemporaryDirectory() as uploads:  # and not in a folder that outlives the page
        os.environ["GRADIO_TEMP_DIR"] = uploads
        page = make_page(load_demo(source, features=features, videos=videos))
        font, mono = ["system-ui", "sans-serif"], ["ui-monospace", "monospace"]
        page.launch(
            server_name=host,
            server_port=port or None,
            prevent_thread_lock=True,  # or Ctrl-C would end it with status 0
            share=False,
            ssr_mode=False,
            mcp_server=False,
            run_history=False,
            enable_monitoring=False,
            quiet=True,
            css=CSS,
            footer_links=[],
            theme=gradio.themes.Default(font=font, font_mono=mono),  # of the system, not of a server
        )
        try:
            print(f"Open {page.local_url} in a browser. Ctrl-C ends it.", flush=True)
            threading.Event().wait()
        finally:
            page.close(verbose=False)


def _check_port(host: str, port: int) -> None:
    """Raises UserError unless a page can be served there; Gradio would notice it after all is loaded."""
    try:
        with socket.socket() as trial:
            trial.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            trial.bind((host, port))
    except OSError as error:
        raise UserError(
            f"Port {port} of {host} can't be used ({error.strerror}). Give another --port, or leave it out to take the "
            "first free one from 7860 up."
        ) from error


def _gradio() -> Any:
    """The package gradio; raises UserError if it is not installed."""
    os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"
    try:
        import gradio
    except ModuleNotFoundError as error:
        raise UserError(f"The page needs the package {error.name}. Install it: pip install 'mam2[demo]'.") from error
    return gradio


def make_page(shown: Demo) -> Any:
    """The page of a demo, a `gradio.Blocks`."""
    gr = _gradio()
    hint = f"Upload a video{', or choose one' if shown.videos else ''}. The model's output appears here."
    one_at_a_time = {"concurrency_limit": 1, "concurrency_id": "model"}
    with gr.Blocks(title=shown.title, analytics_enabled=False) as page:
        gr.Markdown(f"# {in_markdown(shown.title)}\n\n{in_markdown(shown.about)}")
        video, seed = gr.State(""), gr.State(0)
        with gr.Row():
            with gr.Column(scale=1, min_width=300):
                upload = gr.File(label="Your video", height=160)
                choice = gr.Dropdown(
                    list(shown.videos), value=None, label="or one of these", visible=bool(shown.videos)
                )
                mask = gr.Button("Another mask", interactive=False, visible=shown.model.pretrained is not None)
            with gr.Column(scale=3, min_width=300):
                message = gr.Markdown(hint)
                if shown.scorer:
                    gr.render(video, **one_at_a_time)(lambda path: _part(_scores, shown, path))
                gr.render([video, seed], **one_at_a_time)(lambda path, seed: _part(_predictions, shown, path, seed))
                if shown.features:
                    gr.render(video, **one_at_a_time)(lambda path: _part(_similar_windows, shown, path))
        if shown.missing:
            gr.Markdown(f"## Not on this page\n\n{_listed(shown.missing)}")

        def look_at(path: str) -> tuple[str, str, Any]:
            """The video, if it can be opened, a message, and the button."""
            problem = problem_of(path) if path else ""
            usable = bool(path and not problem)
            message = in_markdown(problem) if path else hint
            return path if usable else "", message, gr.Button(interactive=usable)

        def uploaded(path: str | None) -> tuple[Any, ...]:
            return *look_at(path or ""), None

        def chosen(name: str | None) -> tuple[Any, ...]:
            return *look_at(shown.videos[name] if name else ""), None

        private = {"api_visibility": "private"}
        upload.upload(uploaded, upload, [video, message, mask, choice], **private)
        upload.clear(uploaded, upload, [video, message, mask, choice], **private)
        choice.input(chosen, choice, [video, message, mask, upload], **private)
        mask.click(lambda last: last + 1, seed, seed, **private)
    return page


def _part(show: Callable[..., None], shown: Demo, path: str, *seed: int) -> None:
    """Shows a part for a video; or why it can't be shown."""
    try:
        if path:
            show(shown, path, *seed)
    except Exception as error:
        _gradio().Markdown(in_markdown(in_words(error, path)))


def _scores(shown: Demo, path: str) -> None:
    gr = _gradio()
    found = classified(shown, path)
    gr.Markdown("## The number along the video" if shown.model.kind == "regression" else "## Classes along the video")
    gr.Label(found.summary, show_label=False, num_top_classes=MAX_LABELS)
    gr.Plot(found.figure, show_label=False)
    gr.Markdown(_listed(found.notes))
    with gr.Accordion("All numbers", open=False):
        gr.Dataframe(found.rows, headers=found.columns, interactive=False, show_label=False)


def _predictions(shown: Demo, path: str, seed: int) -> None:
    gr = _gradio()
    pictures, sheet_HWC, notes = moving_predictions(shown, path, seed=seed)
    gr.Markdown("## Input and predictions" if shown.model.pretrained else "## Attention of the encoder")
    _gallery(pictures)
    gr.Markdown(_listed(notes))
    with gr.Accordion("Frame by frame", open=False):
        gr.Image(sheet_HWC, interactive=False, show_label=False, buttons=["fullscreen"])


def _similar_windows(shown: Demo, path: str) -> None:
    gr = _gradio()
    asked, found, notes = alike(shown, path)
    gr.Markdown("## Similar windows\n\n### In the video")
    _gallery(asked)
    gr.Markdown("### In the features file")
    _gallery(found)
    gr.Markdown(_listed(notes))


def _gallery(pictures: Sequence[Picture]) -> None:
    """Moving pictures, as files in the folder that is removed when the page ends."""
    files = []
    for webp, caption in pictures:
        with tempfile.NamedTemporaryFile(dir=os.environ["GRADIO_TEMP_DIR"], suffix=".webp", delete=False) as file:
            file.write(webp)
        files.append((file.name, caption))
    layout = {"height": "max-content", "object_fit": "contain", "buttons": ["fullscreen"]}
    _gradio().Gallery(files, show_label=False, interactive=False, **layout)


def _listed(lines: Sequence[str]) -> str:
    return "\n".join(f"- {in_markdown(line)}" for line in lines)
