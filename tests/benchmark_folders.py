"""PASCAL-Context and NYUD-v2 small enough for a test, in the formats of all their builds, and a server for archives."""

import os
import tarfile
import threading
import zipfile
from contextlib import contextmanager
from functools import lru_cache
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
from PIL import Image
from scipy.io import savemat

from mlore_edu.data.dollhouse import scene
from mlore_edu.data.dollhouse_files import write_dollhouse
from mlore_edu.data.dollhouse_layouts import TO_NYUD
from mlore_edu.data.labels import encode_normals, encode_nyud_semseg

SIZE = 64
TRAIN, VAL = 3, 2


def write_layout(root, layout):
    """Dollhouse in the layout of a benchmark: 3 training and 2 validation images of 64×64."""
    write_dollhouse(root, layout=layout, size=SIZE, train=TRAIN, val=VAL, progress=False)
    return root


def ids_of(root):
    lists = [*root.glob("gt_sets/*.txt"), *root.glob("ImageSets/Context/*.txt")]
    return sorted(name for path in lists for name in path.read_text().split())


@lru_cache
def rendered(name):
    return scene(int(name), SIZE, "easy")


def write_build(root, nyud, build):
    """The scenes of a folder in ATRC's formats, in those of another build."""
    for folder in ("images", "segmentation", "normals", "depth", "edge"):
        (root / folder).mkdir(parents=True)
    for name in ids_of(nyud):
        shown = rendered(name)
        stored = encode_nyud_semseg(TO_NYUD[shown.semseg])
        Image.fromarray(shown.image).save(root / f"images/{name}.jpg", quality=95)
        if build == "ASTMT":
            savemat(root / f"segmentation/{name}.mat", {"segmentation": stored})
            Image.fromarray(encode_normals(shown.normals)).save(root / f"normals/{name}.jpg", quality=95)
            savemat(root / f"depth/{name}.mat", {"depth": shown.depth})
            Image.fromarray(shown.edge * np.uint8(255)).save(root / f"edge/{name}.png")
        else:
            Image.fromarray(stored).save(root / f"segmentation/{name}.png")
            np.save(root / f"normals/{name}.npy", np.where(half_mask(shown.depth), 0, shown.normals))
            np.save(root / f"depth/{name}.npy", shown.depth)
            np.save(root / f"edge/{name}.npy", shown.edge.astype(np.float32))
    (root / "gt_sets").mkdir()
    for path in ("gt_sets/train.txt", "gt_sets/val.txt", "dataset.json"):
        (root / path).write_bytes((nyud / path).read_bytes())
    return root


def half_mask(values):
    """The left half of a map with a third axis: where the MTL-PyTorch build of these tests has no normals."""
    mask = np.zeros((*values.shape, 1), bool)
    mask[:, : values.shape[1] // 2] = True
    return mask


def pack(folder, archive):
    """An archive of a folder, its kind told by the suffix."""
    if archive.suffix == ".zip":
        with zipfile.ZipFile(archive, "w", zipfile.ZIP_DEFLATED) as packed:
            for path in sorted(folder.rglob("*")):
                packed.write(path, path.relative_to(folder.parent))
    else:
        mode = {".tar": "w", ".tgz": "w:gz", ".gz": "w:gz", ".xz": "w:xz", ".bz2": "w:bz2"}[archive.suffix]
        with tarfile.open(archive, mode) as packed:
            packed.add(folder, folder.name)
    return archive


def contents(root):
    """Every file below a folder with its bytes; links are followed."""
    found = (Path(place) / name for place, _, names in os.walk(root, followlinks=True) for name in names)
    return {str(path.relative_to(root)): path.read_bytes() for path in found}


class Shop:
    """What a server gives away, and how: with ranges or not, breaking off, changing its mind; it notes all requests."""

    def __init__(self, content):
        self.content = content
        self.ranges, self.tag, self.says_length = True, '"one"', True
        self.breaks = []  # of each coming answer: after how many bytes it breaks off
        self.status = 200
        self.asked = []

    def answer(self, request):
        wanted = request.headers.get("Range")
        self.asked.append(wanted)
        if self.status != 200:
            request.send_error(self.status)
            return
        known = request.headers.get("If-Range") in (None, self.tag)
        start = int(wanted[6:-1]) if wanted and self.ranges and known else 0
        if start and start >= len(self.content):
            request.send_error(416)
            return
        request.send_response(206 if start else 200)
        if start:
            request.send_header("Content-Range", f"bytes {start}-{len(self.content) - 1}/{len(self.content)}")
        if self.says_length:
            request.send_header("Content-Length", str(len(self.content) - start))
        if self.tag:
            request.send_header("ETag", self.tag)
        request.end_headers()
        body = self.content[start:]
        request.wfile.write(body[: self.breaks.pop(0)] if self.breaks else body)


@contextmanager
def server(content):
    """A web server on this machine with one file; gives (shop, address)."""
    shop = Shop(content)

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self):
            shop.answer(self)

        def log_message(self, *arguments):
            pass

    running = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=running.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    try:
        yield shop, f"http://127.0.0.1:{running.server_port}/archive.tgz"
    finally:
        running.shutdown()
        running.server_close()
        thread.join()
