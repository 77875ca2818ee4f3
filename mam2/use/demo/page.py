"""The demo's page, by Gradio: upload or choose a video, and see what a model makes of it. It asks no other server."""

from __future__ import annotations

import os
import socket
import tempfile
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from mam2.config import UserError
from mam2.use.demo import parts as demo_parts
from mam2.use.demo.shown import Demo, all_parts, load_demo, or_problem, predicted


def demo(
    source: str | Path,
    *,
    features: str | Path = "",
    videos: str | Path = "",
    host: str = "127.0.0.1",
    port: int = 0,
) -> None:
    """Serves a page on which a model can be tried, until it is interrupted. It says where the page is.

    Args:
        source: the folder of a pre-training run, whose predictions are shown; of a fine-tuning run, whose classes are
            shown; or what `load_encoder` takes, whose attention is shown.
        features: a file that `embed` wrote with the same encoder: shows its windows that are most like the video.
        videos: a folder of videos, a CSV with path, or a video, to choose from.
        host: "127.0.0.1" is for this machine only; "0.0.0.0" for all that can reach it, as on a Hugging Face Space.
        port: 0 is the first free one from 7860 up.

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
            footer_links=[],
            css=demo_parts.CSS,
            theme=gradio.themes.Default(font=font, font_mono=mono),  # the system's
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
    """The package.

    Raises:
        UserError: it is not installed.
    """
    os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"
    try:
        import gradio
    except ModuleNotFoundError as error:
        raise UserError(f"The page needs the package {error.name}. Install it: pip install 'mam2[demo]'.") from error
    return gradio


def make_page(shown: Demo) -> Any:
    """The page of a demo, a `gradio.Blocks`."""
    gr = _gradio()
    hint = demo_parts.hint(can_choose=bool(shown.videos))
    # No event is part of an API, and one at a time uses the model.
    event = {"api_visibility": "private", "concurrency_limit": 1, "concurrency_id": "model"}

    def of_upload(path: str | None) -> tuple[str, None, Any]:
        return path or "", None, gr.Button(interactive=bool(path))

    def of_choice(name: str | None) -> tuple[str, None, Any]:
        return shown.videos[name] if name else "", None, gr.Button(interactive=bool(name))

    def look(video: str, seed: int) -> Iterator[tuple[str, str, str]]:
        yield from all_parts(shown, video, seed=seed) if video else iter([("", hint, "")])

    def another(video: str, seed: int) -> tuple[int, str]:
        return seed + 1, or_problem(lambda: predicted(shown, video, seed=seed + 1), video)

    with gr.Blocks(title=shown.title, analytics_enabled=False) as page:
        gr.HTML(demo_parts.header(shown.title, shown.about))
        video, seed = gr.State(""), gr.State(0)
        with gr.Row():
            with gr.Column(scale=1, min_width=300):
                upload = gr.File(label="Your video", height=160)
                choice = gr.Dropdown(
                    list(shown.videos), value=None, label="or one of these", visible=bool(shown.videos)
                )
                mask = gr.Button("Another mask", interactive=False, visible=shown.model.pretrained is not None)
            with gr.Column(scale=3, min_width=300):
                parts = [
                    gr.HTML(visible=shown.scorer is not None),
                    gr.HTML(hint),
                    gr.HTML(visible=shown.features is not None),
                ]
        gr.HTML(demo_parts.missing(shown.missing))
        upload.upload(of_upload, upload, [video, choice, mask], **event).then(look, [video, seed], parts, **event)
        upload.clear(of_upload, upload, [video, choice, mask], **event).then(look, [video, seed], parts, **event)
        choice.input(of_choice, choice, [video, upload, mask], **event).then(look, [video, seed], parts, **event)
        mask.click(another, [video, seed], [seed, parts[1]], **event)
    return page
