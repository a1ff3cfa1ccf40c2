# ---
# jupyter:
#   jupytext:
#     formats: ipynb,py:percent
#     text_representation:
#       extension: .py
#       format_name: percent
#   kernelspec:
#     display_name: Python 3 (ipykernel)
#     language: python
#     name: python3
# ---

# %% [markdown]
# # Your own images
#
# Here is a photograph that no network of this book has seen, taken by a camera that none of them knows, of a thing that none of them has a
# word for. One line gives six answers for each of its pixels. **What are the answers worth?**

# %%
import contextlib
import io
import json
import os
import pickle
import shlex
import shutil
import tempfile
from importlib.util import find_spec
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image

# %%
import mlore_edu as me
from mlore_edu import cli, plots
from mlore_edu.data.dollhouse import scene
from mlore_edu.data.dollhouse_files import VALIDATION_SEEDS, to_sample
from mlore_edu.data.transforms import IMAGENET_MEAN, IMAGENET_STD, ToTargets
from mlore_edu.decoders.base import resize
from mlore_edu.errors import UserError
from mlore_edu.evaluation import decode
from mlore_edu.images import read_image
from mlore_edu.metrics import make_meters
from mlore_edu.pictures import overlay, palette, to_rgb
from mlore_edu.prediction import frame_image

# %% [markdown]
# The other chapters need what the library itself needs. This one also writes ONNX files, and takes its photographs from scikit-image;
# `make lab` installs both.

# %%
wanted = ("onnx", "onnxruntime", "onnxscript", "skimage")
if missing := [name for name in wanted if find_spec(name) is None]:
    raise UserError(
        f"This chapter needs {', '.join(missing)}, too; install what the tests of "
        "the book use, with pip install -e '.[book,test]', and start again."
    )
import skimage.data

# %%
plots.use_style()
tasks = me.DOLLHOUSE
blue, orange, green = plots.OKABE_ITO[:3]
model = me.from_pretrained("../models/mlore")  # made for 128 × 128 pixels
photo, _, disparity = skimage.data.stereo_motorcycle()  # (500, 741, 3) uint8
answers = me.predict(model, photo)


# %% tags=["hide-input"] mystnb={"figure": {"name": "fig-19-photo", "caption": "A photograph from the Middlebury stereo benchmark, and what a network that knows nothing but rendered rooms answers to it, at the photograph's own 500 × 741 pixels."}, "image": {"alt": "Eight panels. A red motorcycle in front of shelves; the same tinted, with motorcycle and shelves in the colour of a person; patches of leg and torso colours on the wheels; a dark picture with the machine a little brighter; normals mostly pointing at the viewer; a blurred depth map; lines along every contour; and a legend of the classes found."}}
def show_answers(image, answers):
    """The image, six answers over it, and the classes that occur."""
    height = 7.5 / 4 * image.shape[0] / image.shape[1]
    _, axes = plt.subplots(2, 4, figsize=(7.5, 2 * height + 0.5))
    shown = {"image": image, **answers}
    for axis, (name, answer) in zip(axes.flat, shown.items()):
        axis.imshow(overlay(image, name, np.asarray(answer)))
        axis.set(xticks=[], yticks=[], title=plots.TITLES[name])
        axis.spines[:].set_visible(False)
    colours, last = palette("semseg") / 255, axes.flat[-1]
    last.axis("off")
    for y, k in enumerate(answers["semseg"].unique().tolist()[:10]):
        last.add_patch(plt.Rectangle((0, 9.2 - y), 0.12, 0.7, color=colours[k]))
        last.text(
            0.17, 9.5 - y, tasks["semseg"].class_names[k], va="center", size=9
        )
    last.set(ylim=(0, 10), xlim=(0, 1))


show_answers(photo, answers)


def bare(axis, picture, title=""):
    """A picture without ticks and frame."""
    axis.imshow(picture)
    axis.set(xticks=[], yticks=[], title=title)
    axis.spines[:].set_visible(False)


# %% [markdown]
# The contours are good. Most of the rest is nonsense, and it comes in the same clear colours as the sense: the motorcycle is
# a *person*, with lower legs for wheels. A program that takes any photograph and never complains is easily written, and this chapter writes it. The
# harder part is to know, at every step from the file to the metres, what may be believed.
#
# ## What you will be able to do
#
# - predict your own photographs, folders and films by one command, and read the files that it writes;
# - say what happens to a picture that is grey, transparent, sideways, tiny or no picture at all;
# - bring an image of any size into a network's frame and its answers back out, to the pixel, and measure what each way costs;
# - turn metres of one camera into those of another, and see when that helps and when it does not;
# - save a model so that others can load it safely, and turn it into a file that runs without this library, proved equal;
# - tell confidence from being right, and choose weights that fit your pictures.
#
# *Before you start:* [chapter 1](../part1_foundations/01_five_answers_from_one_image.ipynb) for the answers and their units,
# [chapter 8](../part2_mlore/08_reparameterisation.ipynb) for the fused model. *Time:* 45 minutes of reading, half a minute
# of running. *Hardware:* two CPU cores, 4 GB of memory; no GPU, no download.
#
# ## One command
#
# We need a desk to work on: a new folder with a model, and three files as they lie about on anyone's disk. The first is a room that the
# network has not seen, at a size that it was not made for. The second is the photograph. The third was meant to be one, but the server sent
# a login page instead.

# %%
table = tempfile.TemporaryDirectory()
desk = Path(table.name)
shutil.copytree("../models/mlore", desk / "mlore")
(desk / "photos").mkdir()
room = scene(VALIDATION_SEEDS, (300, 460), "easy")
Image.fromarray(room.image).save(desk / "photos/room.png")
Image.fromarray(photo).save(desk / "photos/motorcycle.jpg")
_ = (desk / "photos/holiday.jpg").write_text("<html>Please log in.</html>")


# %% tags=["hide-input"]
def run(command):
    """Run a command as in a terminal on the desk, and print what it says."""
    here, said, wrong = os.getcwd(), io.StringIO(), io.StringIO()
    os.chdir(desk)
    try:
        with contextlib.redirect_stdout(said), contextlib.redirect_stderr(wrong):
            code = cli.main(shlex.split(command)[1:])
    finally:
        os.chdir(here)
    print((said.getvalue() + wrong.getvalue().split("\r")[-1]).strip())
    print(f"exit code {code}")


# %%
run("mlore-edu predict mlore photos --arrays --out answers")

# %% [markdown]
# One bad file does not stop the others, it is named in a sentence, and the exit code tells a script that not everything went well. In place of
# the folder `photos` there could be single files, or a film (`mp4`, `mov`, …, with the package `av`; `--every 10` takes one picture of ten). In place of
# `mlore` there could be the folder of a training run, or `OWNER/NAME` on the Hugging Face Hub. Nothing is ever overwritten: a second run
# wants another `--out`.

# %%
run("mlore-edu predict mlore photos/room.png --out answers")
for path in sorted((desk / "answers").rglob("*.*")):
    print(path.relative_to(desk))

# %% [markdown]
# `room.png` is the picture of all answers. The folders are there because of `--arrays`; they have the form that `mlore-edu evaluate
# --predictions` reads, and any program can:
#
# | folder | file | how to read it |
# |---|---|---|
# | `semseg`, `human_parts` | 8-bit PNG | the number of the class; names in `tasks["semseg"].class_names` |
# | `saliency`, `edge` | 8-bit PNG | probability × 255 |
# | `normals` | `.npy`, (H, W, 3) | unit vectors: x right, y up, z towards the camera |
# | `depth` | `.npy`, (H, W) | metres along the optical axis, not along the ray |
#
# So what does it say of the room? How much of the picture is what, and how far away?

# %%
classes = np.asarray(Image.open(desk / "answers/semseg/room.png"))  # (300, 460)
metres = np.load(desk / "answers/depth/room.npy")  # (300, 460)
for k, name in enumerate(tasks["semseg"].class_names):
    seen = classes == k
    if seen.mean() > 0.02:
        share, far = 100 * seen.mean(), np.median(metres[seen])
        print(f"{name:8} about {5 * round(share / 5):2} %, {far:.0f} m away")

# %% [markdown]
# In Python all this is one call, which takes a path, a Pillow image, an array or a tensor, and gives tensors of the image's own size.

# %% mystnb={"figure": {"name": "fig-19-room", "caption": "A validation room of Dollhouse rendered at 300 × 460 pixels, and the answers of the same network. This is what it was made for, but for the size."}, "image": {"alt": "Eight panels. A rendered room with a person and furniture; person, floor and walls in their colours; the body in coloured parts; the person bright on a dark ground; normals in flat colours for floor, back wall and side walls; a depth map that is bright near the viewer; clean boundaries; and a legend."}}
answers = me.predict(model, desk / "photos/room.png")
assert (answers["semseg"].numpy() == classes).all()
show_answers(room.image, answers)

# %% [markdown]
# The difference between {numref}`fig-19-photo` and {numref}`fig-19-room` is the subject of the chapter's second half. First the way there and back.
#
# ## What is an image?
#
# A network takes red, green and blue, upright. Files hold other things. A telephone stores what its sensor saw, sideways, with a note which
# way was up (EXIF orientation). A PNG may be transparent, and keep any rubbish where nothing is to be seen. A depth camera or a
# scanner writes 16 bits, a printer's file four inks. The rule of `read_image` is short: *the network gets what a viewer would show.*
#
# {numref}`fig-19-odd` shows one photograph in five disguises, made here.

# %%
small = Image.fromarray(photo).resize((222, 150))  # Pillow counts width first
odd = desk / "odd"
odd.mkdir()
note = Image.Exif()
note[0x0112] = 6  # "turn me clockwise by 90°"
small.rotate(90, expand=True).save(odd / "turned.png", exif=note)
small.convert("L").save(odd / "grey.png")
small.convert("CMYK").save(odd / "inks.tif")
sixteen = np.asarray(small.convert("L")).astype(np.uint16) * 257
Image.fromarray(sixteen).save(odd / "deep.png")

# %%
y, x = np.mgrid[-1:1:150j, -1:1:222j]
alpha = np.clip(2.5 - 2.5 * np.hypot(x, y), 0, 1)  # (150, 222): fades to nothing
rgba = np.dstack([np.asarray(small), alpha * 255]).astype(np.uint8)  # (150, 222, 4)
Image.fromarray(rgba).save(odd / "faded.png")


# %% tags=["hide-input"] mystnb={"figure": {"name": "fig-19-odd", "caption": "One photograph in five files. Above: the pixels as a program gets them that asks Pillow for red, green and blue and no more. Below: as the library reads them."}, "image": {"alt": "Two rows of five pictures. Above the first motorcycle lies on its side and one is all white, and one has kept the corners that should have faded. Below all five stand upright, the faded one has an oval fading to white."}}
files = ("turned.png", "faded.png", "deep.png", "grey.png", "inks.tif")
figure, axes = plt.subplots(2, 5, figsize=(7.5, 2.6))
for (above, below), name in zip(axes.T, files):
    bare(above, np.asarray(Image.open(odd / name).convert("RGB")), name)
    bare(below, read_image(odd / name).permute(1, 2, 0))
    for axis in (above, below):
        axis.spines[:].set(visible=True, color="0.8")
axes[0, 0].set_ylabel("asked for RGB")
_ = axes[1, 0].set_ylabel("read_image")

# %% [markdown]
# Each repair is a line or two. Turning is looking up what the number 6 means. Sixteen bits become eight when the largest value, 65535, becomes 255. A
# transparent pixel of colour $\mathbf{c}$ lies with its share $\alpha$ on white paper,
#
# ```{math}
# :label: eq-19-over
# \mathbf{c}' = \alpha\, \mathbf{c} + (1 - \alpha)\, \mathbf{1},
# ```
#
# with colours from 0 to 1. (Whether the paper should be white is a convention; viewers have settled on it.)


# %%
def pixels(name):
    return np.asarray(Image.open(odd / name))


def same(by_hand, name, within=0):
    read = read_image(odd / name).permute(1, 2, 0).numpy()  # (150, 222, 3)
    return bool((np.abs(by_hand - read.astype(float)) <= within).all())


share = rgba[..., 3:] / 255  # (150, 222, 1)
on_white = share * rgba[..., :3] + (1 - share) * 255
print("turned:", same(np.rot90(pixels("turned.png"), -1), "turned.png"))
print(
    "16 bit:", same((pixels("deep.png") / 257)[..., None], "deep.png", within=0.5)
)
print("faded: ", same(on_white, "faded.png", within=1))

# %% [markdown]
# Does it matter? A network that was trained on upright rooms has learned where floors are. Turn twelve unseen rooms on their side, predict, and turn the
# answers back:

# %%
seeds = range(VALIDATION_SEEDS, VALIDATION_SEEDS + 12)
make = ToTargets()


def labelled(size, seeds=seeds, difficulty="easy"):
    """Unseen rooms with all their labels, as tensors."""
    return [make(to_sample(scene(s, size, difficulty), str(s))) for s in seeds]


def plain(sample):
    return sample["image"].as_subclass(torch.Tensor)  # uint8 (3, H, W)


# %%
judged = ("semseg", "human_parts", "saliency", "normals", "depth")


def judge(answer, samples, names=judged):
    """Metrics of a function from an image to its answers."""
    meters = make_meters(tasks)
    for sample in samples:
        found = answer(plain(sample))
        for name in names:
            meters[name].update(found[name][None], sample[name][None])
    return {name: float(meters[name].compute()) for name in names}


# %%
def upright(image):
    return me.predict(model, image)


def sideways(image):
    found = me.predict(model, image.rot90(1, (-2, -1)))  # (3, W, H)
    return {name: maps.rot90(-1, (-2, -1)) for name, maps in found.items()}


def row(title, found, names):
    values = (
        f"{found[n]:.1f} m" if n == "depth" else f"{found[n]:.0f}" for n in names
    )
    print(f"{title:10}" + "".join(f"{value:>13}" for value in values))


# %%
rooms = labelled(128)
turnable = ("semseg", "human_parts", "saliency", "depth")
print(" " * 10 + "".join(f"{name:>13}" for name in turnable))
usual, lying = (judge(way, rooms, turnable) for way in (upright, sideways))
row("upright", usual, turnable)
row("sideways", lying, turnable)

# %% [markdown]
# (Normals are left out: on a turned picture even right ones would point elsewhere.) A forgotten EXIF note costs more than any choice of decoder in this
# book can gain. And what is no image at all is refused in a sentence that says what to do, whatever went wrong inside Pillow's forty readers:

# %%
(odd / "empty.png").touch()
whole = (desk / "photos/motorcycle.jpg").read_bytes()
(odd / "cut.jpg").write_bytes(whole[:5000])
strange = (odd / "empty.png", odd / "cut.jpg", photo.astype(float) / 128)
for source in strange:
    try:
        read_image(source)
    except UserError as error:
        print(str(error).replace(f"{odd}/", "").split(" (")[0])
tiny = me.predict(model, np.zeros((1, 1, 3), np.uint8))
print("one pixel:", tuple(tiny["semseg"].shape), tuple(tiny["normals"].shape))
assert usual["semseg"] > lying["semseg"] + 20

# %% [markdown]
# ## Into the frame
#
# A network of this book has a frame: it was built for images of one height and width, 128 × 128 here, 512 × 512 for PASCAL-Context. The transformer's
# position embedding has one vector for each token of that frame, and MLoRE's routers one weight for each place. What to do with 500 × 741 pixels?
#
# Say the image has $H \times W$ pixels and the frame $H_0 \times W_0$. It must shrink by
#
# ```{math}
# :label: eq-19-factor
# s = \min\!\left(\frac{H_0}{H}, \frac{W_0}{W}, 1\right),
# ```
#
# the same for both sides, so that a square stays a square. What is left of the frame is padded, half on either side, with the value 0 *after*
# normalisation, which is ImageNet's mean colour. An image that is smaller than the frame does not shrink, and gets more padding. (`--enlarge` allows
# $s > 1$; in Python, `enlarge=True`.)


# %%
mean, std = (torch.tensor(v)[:, None, None] for v in (IMAGENET_MEAN, IMAGENET_STD))


def normalised(image):
    return (image.float() / 255 - mean) / std


def window_of(shape, frame=128):
    """Where an image of that shape lies in the frame: top, left, height, width."""
    s = min(frame / shape[0], frame / shape[1], 1)
    height, width = (max(1, round(side * s)) for side in shape)
    return (frame - height) // 2, (frame - width) // 2, height, width


# %%
from torchvision.transforms.v2.functional import resize as shrink


def shrunk(image, size):
    """Each new pixel is a weighted mean of all that it covers."""
    return shrink(image, list(size), antialias=True)


def framed(image, frame=128):
    top, left, height, width = window_of(image.shape[-2:], frame)
    canvas = torch.zeros(3, frame, frame)
    inner = normalised(shrunk(image, (height, width)))  # (3, height, width)
    canvas[:, top : top + height, left : left + width] = inner
    return canvas  # (3, 128, 128)


# %%
source = read_image(photo)  # (3, 500, 741)
theirs = frame_image(source, model.img_size)
assert window_of(source.shape[-2:]) == (*theirs.offset, *theirs.size)
torch.testing.assert_close(framed(source), theirs.image)
print("in the frame (top, left, height, width):", window_of(source.shape[-2:]))

# %% [markdown]
# Two thirds of the frame are picture, one third is nothing. Is that wise? There are at least three other ways: fill the rest with the picture's own
# border, stretch the picture over the whole frame, or take square windows out of it, predict each, and average their scores where they overlap.


# %%
def scores(frames):
    with torch.inference_mode():
        return model(frames).predictions


def out_of(raw, window, size):
    """Cut the window out, enlarge it to the image's size, decode."""
    top, left, height, width = window
    inner = {
        n: v[..., top : top + height, left : left + width] for n, v in raw.items()
    }
    whole = {n: resize(v, size) for n, v in inner.items()}  # (1, C, H, W)
    return {n: v[0] for n, v in decode(whole, tasks).items()}


def padded(image):
    size = tuple(image.shape[-2:])
    return out_of(scores(framed(image)[None]), window_of(size), size)


# %%
def bordered(image):
    size = tuple(image.shape[-2:])
    top, left, height, width = window = window_of(size)
    inner = normalised(shrunk(image, (height, width)))[None]
    around = (left, 128 - left - width, top, 128 - top - height)
    return out_of(scores(F.pad(inner, around, mode="replicate")), window, size)


def stretched(image):
    raw = scores(normalised(shrunk(image, (128, 128)))[None])
    return out_of(raw, (0, 0, 128, 128), tuple(image.shape[-2:]))


# %%
def in_squares(image, count=3):
    """For wide images: square windows side by side, their scores averaged."""
    height, width = image.shape[-2:]
    long = round(128 * width / height)
    wide = normalised(shrunk(image, (128, long)))  # (3, 128, long)
    starts = np.linspace(0, long - 128, count).round().astype(int)
    raw = scores(torch.stack([wide[..., x : x + 128] for x in starts]))
    total = {n: torch.zeros(1, v.shape[1], 128, long) for n, v in raw.items()}
    times = torch.zeros(long)
    for k, x in enumerate(starts):
        times[x : x + 128] += 1
        for name, maps in total.items():
            maps[..., x : x + 128] += raw[name][k]
    maps = {name: value / times for name, value in total.items()}
    return out_of(maps, (0, 0, 128, long), (height, width))


# %%
wide_rooms = labelled((200, 300), seeds[:6])
ways = {
    "padding": padded,
    "own border": bordered,
    "stretching": stretched,
    "squares": in_squares,
}
found = {name: judge(way, wide_rooms) for name, way in ways.items()}

# %% tags=["hide-input"] mystnb={"figure": {"name": "fig-19-frames", "caption": "Four ways of a wide room into a square frame, and what the network makes of six unseen rooms of 200 × 300 pixels that way. Dashed: the same rooms rendered square, at 128 × 128, which show less of the room at the sides."}, "image": {"alt": "Above four square pictures: a room between grey bars, between bars that continue its border, the room squeezed, and three overlapping squares. Below four bar charts: for segmentation and body parts the bars grow from padding to squares; the error of normals is lowest with stretching, that of depth with stretching and squares; only squares reach the dashed line, and only for segmentation and body parts."}}
figure, axes = plt.subplots(2, 4, figsize=(7.5, 4.2), height_ratios=(1, 1.1))
example = plain(wide_rooms[0])
inside = shrunk(example, (85, 128)).permute(1, 2, 0).numpy()
bars = np.full((128, 128, 3), np.array(IMAGENET_MEAN) * 255, np.uint8)
bars[21:106] = inside
drawn = (
    bars,
    np.pad(inside, ((21, 22), (0, 0), (0, 0)), mode="edge"),
    shrunk(example, (128, 128)).permute(1, 2, 0).numpy(),
    shrunk(example, (128, 192)).permute(1, 2, 0).numpy(),
)
for axis, title, picture in zip(axes[0], ways, drawn):
    bare(axis, picture, title)
for k, x in enumerate((0, 32, 64)):
    axis.add_patch(
        plt.Rectangle((x, 3 * k), 127, 121, fill=False, ec=plots.OKABE_ITO[k], lw=2)
    )
square = judge(upright, rooms[:6])
units = {"semseg": "mIoU, %", "human_parts": "mIoU, %", "normals": "mErr, °"}
for axis, name in zip(axes[1], ("semseg", "human_parts", "normals", "depth")):
    axis.bar(range(4), [found[way][name] for way in ways], color=blue, width=0.7)
    axis.axhline(square[name], color="0.3", ls="--", lw=1)
    axis.set_xticks(range(4), ways, rotation=45, ha="right", fontsize=8)
    unit = units.get(name, "RMSE, m")
    axis.set_title(
        f"{plots.TITLES[name].replace('Semantic s', 'S')}\n({unit})", fontsize=9
    )

# %%
for better, worse in (("squares", "padding"), ("stretching", "padding")):
    gained = [n for n in judged if n not in ("normals", "depth", "saliency")
              if found[better][n] > found[worse][n]]  # fmt: skip
    gained += [
        n for n in ("normals", "depth") if found[better][n] < found[worse][n]
    ]
    print(f"{better} instead of {worse} is better for", ", ".join(gained))
assert found["squares"]["semseg"] > found["padding"]["semseg"] + 5

# %% [markdown]
# Padding, the field's way and the library's, comes out *last* in most of {numref}`fig-19-frames`. Before you change the library: look into the recipe. The shipped networks were trained
# with flips as their only augmentation, on pictures that fill the frame. They have never seen a grey bar, and a transformer looks
# everywhere. The papers' recipe scales each image by 0.5 to 2 before it is cropped and padded, so their networks see padding all the time, and
# padding is also how the benchmarks are judged; `me.predict` gives exactly what an evaluation would judge.

# %%
recipe = json.loads(Path("../models/mlore/metrics.json").read_text())["recipe"]
print("augmentation of the shipped network:", recipe["augmentation"])
little = labelled(64, seeds[:8])
enlarged = judge(lambda image: me.predict(model, image, enlarge=True), little)
as_it_is = judge(upright, little)
print(" " * 10 + "".join(f"{name:>13}" for name in judged))
row("padded", as_it_is, judged)
row("enlarged", enlarged, judged)
assert enlarged["semseg"] > as_it_is["semseg"] + 10

# %% [markdown]
# The same holds for small pictures: of 64 × 64 pixels the padded frame is three quarters nothing, and `--enlarge` is the better choice for this
# network. The rule is the same each time: **show a network what it was trained on.** If your pictures are wide, train with the field's augmentation
# (`--augmentation field`), or with a frame of your pictures' shape (`--img-size`), or cut squares as above.
#
# What does size cost? In the network nothing: every image becomes one frame. What grows with a large photograph is only the shrinking before and the enlarging after,
# class by class, so that forty maps of a 12-megapixel photograph never lie in memory at once.
#
# ## And back out again
#
# The answers come out in the frame's pixels. Where in the photograph is pixel $i$ of $n$? Think of pixels as little squares side by side. Pixel $i$ covers the
# interval from $i/n$ to $(i+1)/n$ of the picture, at every resolution. So the *centre* of pixel $i$ of $N$ lies, counted in pixels of the smaller map, at
#
# ```{math}
# :label: eq-19-where
# u = \left(i + \tfrac{1}{2}\right) \frac{n}{N} - \tfrac{1}{2},
# ```
#
# and its value is mixed from the two neighbours $\lfloor u \rfloor$ and $\lfloor u \rfloor + 1$. The other convention,
# `align_corners=True`, puts the centres of the first and of the last pixels on each other: $u = i\,(n-1)/(N-1)$.


# %%
def enlarge_line(values, N, where):
    """Values between n points: a mean of the two neighbours, weighted by nearness."""
    u = where(torch.arange(N, dtype=torch.float64), len(values), N)
    u = u.clamp(0, len(values) - 1)
    left = u.floor().long().clamp(max=len(values) - 2)
    return torch.lerp(values[left], values[left + 1], u - left)  # (N,)


def squares(i, n, N):
    return (i + 0.5) * n / N - 0.5


def corners(i, n, N):
    return i * (n - 1) / (N - 1)


# %%
line = torch.rand(9, generator=torch.Generator().manual_seed(0)).double()
library = resize(line[None, None, None], (1, 50))[0, 0, 0]  # (50,)
torch.testing.assert_close(enlarge_line(line, 50, squares), library)
other = F.interpolate(line[None, None], 50, mode="linear", align_corners=True)[0, 0]
torch.testing.assert_close(enlarge_line(line, 50, corners), other)

# %% [markdown]
# To see what a wrong convention does, take a picture whose pixels hold their own position, shrink it by averaging, and enlarge it again.

# %% tags=["hide-input"] mystnb={"figure": {"name": "fig-19-where", "caption": "Left: how far things move when a map of positions is shrunk by averaging and enlarged by each convention, for a line of 512 pixels. Right: the head of the person in the room, 20 × 20 pixels of the frame, enlarged after the choice of the class, and before it."}, "image": {"alt": "Left a plot: a flat line at zero for pixel squares, but for the very ends, and slanted lines for aligned corners that reach minus and plus half the factor at the two ends. Right two small pictures of a blue shape: one with blocky steps, one with a smooth outline."}}
positions = torch.arange(512).double() + 0.5
figure, axes = plt.subplots(1, 3, figsize=(7.5, 2.6), width_ratios=(1.7, 1, 1))
for factor, style in ((4, ":"), (16, "-")):
    coarse = positions.view(-1, factor).mean(dim=1)  # (512 / factor,)
    for where, colour in ((squares, blue), (corners, orange)):
        moved = enlarge_line(coarse, 512, where) - positions
        name = "squares" if where is squares else "corners"
        axes[0].plot(
            positions, moved, style, color=colour, label=f"{name}, factor {factor}"
        )
axes[0].set(xlabel="position (pixels)", ylabel="moved by (pixels)", ylim=(-9, 14))
axes[0].legend(fontsize=8, ncols=2, loc="upper center")
raw = scores(framed(read_image(room.image))[None])["semseg"][:, [0, 14]]
place = np.argwhere((raw[0, 1] > raw[0, 0]).numpy())
y, x = (int(v) for v in place[place[:, 0].argmin()])
part = raw[
    ..., max(0, y - 4) : max(0, y - 4) + 20, max(0, x - 10) : max(0, x - 10) + 20
]
late = resize(part, (200, 200)).argmax(dim=1)[0]
blocky = F.interpolate(part.argmax(dim=1, keepdim=True).float(), (200, 200))[0, 0]
for axis, shape, title in (
    (axes[1], blocky, "class first"),
    (axes[2], late, "scores first"),
):
    bare(
        axis, np.where(shape[..., None] > 0, (0, 114, 178), (235, 235, 235)), title
    )

# %% [markdown]
# With squares nothing moves ({numref}`fig-19-where`), but for the outermost half pixel of the coarse map, beyond which there is nothing to mix with. With aligned corners everything moves
# towards the borders, by up to half of the factor less one. In a network that resizes at every decoder stage such shifts add up, in one map and not in
# another. So the library uses one convention throughout (`resize` in `mlore_edu/decoders/base.py`).
#
# The second thing to get right is the order. A mean of *class 3* and *class 9* is no class. Scores can be averaged, so they are enlarged first and the class is
# chosen last. A mean of unit normals is no unit vector, so they are given their length last:

# %%
left_wall, floor = torch.tensor([1.0, 0, 0]), torch.tensor([0, 1.0, 0])
between = (left_wall + floor) / 2
print(f"length of the mean of two unit vectors: {between.norm():.2f}")

# %% [markdown]
# Now all pieces are there, and `me.predict` is `padded` from above. For every task:

# %%
by_hand, library = padded(source), me.predict(model, photo)
for task in tasks:
    ours, theirs = by_hand[task.name].float(), library[task.name].float()
    if task.metric == "mIoU":  # a rounding can decide where two scores are equal
        assert (ours == theirs).float().mean() > 0.999
    else:
        torch.testing.assert_close(ours, theirs, atol=2e-3, rtol=1e-3)
print("by hand as by the library:", ", ".join(tasks.names))

# %% [markdown]
# ## Metres need a camera
#
# One picture cannot tell a room from a doll's house. A camera draws a thing of size $S$ (metres) at distance $Z$ (metres)
#
# ```{math}
# :label: eq-19-pinhole
# p = f\, \frac{S}{Z}
# ```
#
# pixels large, where $f$ is its **focal length in pixels**. A network that is to say metres must know how large things are and which $f$ drew
# them; the first it can learn, the second it has to assume: that of its training. If it sees a picture of another camera and recognises size,
# it answers $Z_0 = f_0 S / p$, when right would be $Z = f S / p$. Hence
#
# ```{math}
# :label: eq-19-metres
# Z = Z_0\, \frac{f}{f_0} \cdot s ,
# ```
#
# where $s$ of {eq}`eq-19-factor` is there because shrinking the picture shrinks its focal length, too. (`RandomScale` of the training does the inverse to the labels: it
# divides depth by the factor by which it enlarges the image.) Without `focal_ratio` $= f / f_0$ the library leaves metres as they are. Most photographs note their
# focal length $f_{\text{mm}}$ in its EXIF data, and $f = f_{\text{mm}} W / w$ for a sensor of $w$ millimetres across; for a "35 mm equivalent", $w = 36$.
#
# So much for geometry. Does the network know about it? Render the rooms at twice the resolution and cut out the middle: the picture of a
# camera of the same resolution with twice the focal length. By {eq}`eq-19-metres` all answers should be half of the truth.

# %%
sharp = [scene(s, 256, "easy") for s in seeds[:8]]


def middle(maps, keep=0.5):
    """The middle of a map, `keep` of its height and width."""
    edge = round(maps.shape[0] * (1 - keep) / 2)
    return np.ascontiguousarray(
        maps[edge : len(maps) - edge, edge : len(maps) - edge]
    )


def depths(keep):
    """Predicted and true metres of all rooms, cut to their middle."""
    pairs = []
    for shown in sharp:
        found = me.predict(model, middle(shown.image, keep))["depth"][0]
        pairs.append((found.numpy(), middle(shown.depth, keep)))
    return np.array(pairs).transpose(1, 0, 2, 3)  # (2, rooms, height, width)


# %%
def rmse(predicted, true):
    return np.sqrt(np.mean((predicted - true) ** 2))


ratios = np.linspace(0.5, 2.5, 41)
curves, best = {}, {}
for keep in (1, 0.5):
    predicted, true = depths(keep)
    curves[keep] = [rmse(ratio * predicted, true) for ratio in ratios]
    best[keep] = ratios[np.argmin(curves[keep])]
print(f"whole picture:  metres fit best times {best[1]:.1f}; geometry says 1")
print(f"middle of it:   metres fit best times {best[0.5]:.1f}; geometry says 2")
assert best[0.5] < 1.4


# %% mystnb={"figure": {"name": "fig-19-focal", "caption": "Error of depth in eight unseen rooms when all predicted metres are multiplied by a factor. Dots: the factor that geometry asks for."}, "image": {"alt": "Two curves shaped like a V. That of the whole picture has its lowest point at about one, where its dot lies. That of the middle has its lowest point at little more than one, too, and its dot lies far up on its right arm, at two."}}
figure, axis = plt.subplots(figsize=(6, 2.6))
for (keep, curve), colour, name in zip(
    curves.items(), (blue, orange), ("whole picture", "middle half, twice the f")
):
    axis.plot(ratios, curve, color=colour, label=name)
    axis.plot(1 / keep, np.interp(1 / keep, ratios, curve), "o", color=colour, ms=8)
axis.set(xlabel="factor on the metres", ylabel="RMSE (m)", ylim=(0, None))
_ = axis.legend()

# %% [markdown]
# It does not. This network says about the same metres whether the camera zooms in or not. Its rooms are much alike, the walls behind are
# always some metres away, and to know *that* it needs no geometry. Nobody taught it any: the field's augmentation with its random scale would
# have shown it the same person larger with a label that is nearer, and flips do not. (Whether that is enough, we have not tried.) So `focal_ratio` is an option for you to decide, not a default:
# it repairs a network that measures size, and spoils one that knows its rooms. If you have a handful of pictures with a tape measure's truth, you can draw
# {numref}`fig-19-focal` yourself.
#
# Try it: how much of the picture is kept, and which factor. {numref}`fig-19-zoom` is one position of the sliders.


# %%
def zoomed(keep, ratio, number=0):
    shown = sharp[number]
    image, true = middle(shown.image, keep), middle(shown.depth, keep)
    found = ratio * me.predict(model, image)["depth"][0].numpy()
    pictures = (image, to_rgb("depth", true), to_rgb("depth", found))
    titles = ("image", f"true, median {np.median(true):.1f} m")
    titles += (f"answer, median {np.median(found):.1f} m",)
    _, axes = plt.subplots(1, 3, figsize=(7.5, 2.7))
    for axis, picture, title in zip(axes, pictures, titles):
        bare(axis, picture, title)


# %% tags=["nbval-ignore-output"]
import ipywidgets

_ = ipywidgets.interact(
    lambda **choice: (zoomed(**choice), plt.show())[1],
    keep=ipywidgets.FloatSlider(0.5, min=0.3, max=1, step=0.05),
    ratio=ipywidgets.FloatSlider(1, min=0.5, max=2.5, step=0.1),
    number=ipywidgets.IntSlider(0, 0, len(sharp) - 1),
)

# %% mystnb={"figure": {"name": "fig-19-zoom", "caption": "The view of the sliders for the middle half of one room and the metres as predicted. Near is bright."}, "image": {"alt": "Three square pictures: the middle part of a rendered room, its true depth in flat shades, and the predicted depth, a blurred version of about the same brightness."}}
zoomed(keep=0.5, ratio=1)

# %% [markdown]
# ## Far from home
#
# Now the photograph with which we began. It was taken by two cameras beside each other, a distance $B$ apart, and for each pixel it is known how
# far it moves from one picture to the other. This **disparity** $d$ gives true metres by the same triangle as {eq}`eq-19-pinhole`,
#
# ```{math}
# :label: eq-19-stereo
# Z = \frac{f B}{d + d_0},
# ```
#
# where $d_0$ is how far the two cameras' axes are apart in their pictures {cite}`scharstein2014high`. The three numbers are in the
# documentation of scikit-image.

# %%
focal, baseline, offset = 994.978, 0.193001, 31.086  # pixels, metres, pixels
valid = np.isfinite(disparity)  # (500, 741)
truth = focal * baseline / (np.where(valid, disparity, 0) + offset)
f0 = 0.95 * 128  # of Dollhouse's cameras, at the middle of their range
plain_metres = me.predict(model, photo)["depth"][0].numpy()
known = me.predict(model, photo, focal_ratio=focal / f0)["depth"][0].numpy()

# %%
guesses = {
    "as predicted": plain_metres[valid],
    "with the camera": known[valid],
    "one number": np.median(truth[valid]),
}
errors = {name: rmse(guess, truth[valid]) for name, guess in guesses.items()}
for name, error in errors.items():
    print(f"{name:16} RMSE {error:.1f} m")
together = np.corrcoef(plain_metres[valid], truth[valid])[0, 1]
print(f"correlation with the truth: below 0.2 is {together < 0.2}")
assert errors["one number"] < errors["as predicted"] < errors["with the camera"]

# %% tags=["hide-input"] mystnb={"figure": {"name": "fig-19-metres", "caption": "The photograph's true depth (white: not measured), the answer, and the two against each other, for one pixel in fifty. On the dashed line they would agree."}, "image": {"alt": "Three panels: a sharp depth map of the motorcycle before the wall, a blurred bright cloud that does not resemble it, and a scatter plot in which dots fill a shapeless area far from the diagonal."}}
figure, axes = plt.subplots(1, 3, figsize=(7.5, 2.2), width_ratios=(1.2, 1.2, 1))
for axis, maps, title in zip(
    axes, (truth * valid, plain_metres), ("true", "answer")
):
    bare(axis, to_rgb("depth", maps), title)
dots = np.flatnonzero(valid)[::50]
axes[2].plot(truth.flat[dots], plain_metres.flat[dots], ".", ms=1, color=blue)
axes[2].plot((1, 6), (1, 6), "--", color="0.4", lw=1)
_ = axes[2].set(xlabel="true (m)", ylabel="answer (m)", xlim=(1, 6), ylim=(0, 6))

# %% [markdown]
# In {numref}`fig-19-metres` nothing agrees. To say one number everywhere, if somebody tells us the median of the truth, is better than to ask this network, and to tell it the camera makes it worse: a right formula does not repair
# wrong numbers. Nor does the network warn us, as we shall see. Nothing is broken here. The code is the same that answered well in
# {numref}`fig-19-room`; the *weights* have seen a thousand rooms with five kinds of things, under one kind of light. Everything that is dark, glossy and
# in front is, to them, most like a person.
#
# Could we at least read from the scores that it is lost? Take the largest probability of each pixel's classes as the network's confidence, and compare it
# with how often it is right, on rooms that grow stranger: *easy* as in training, *medium* and *full* with more kinds of things, light and clutter. And
# without labels, on photographs, and on noise.


# %%
def confidence(image):
    image = read_image(image)
    top, left, height, width = window_of(image.shape[-2:])
    best = scores(framed(image)[None])["semseg"].softmax(dim=1).amax(dim=1)[0]
    return best[top : top + height, left : left + width].mean().item()


def right(sample):
    return (
        (me.predict(model, plain(sample))["semseg"] == sample["semseg"])
        .double()
        .mean()
    )


# %%
stranger = {level: labelled(128, seeds[:6], level) for level in ("medium", "full")}
stranger = {"easy": rooms[:6], **stranger}
sure = {k: np.mean([confidence(plain(s)) for s in v]) for k, v in stranger.items()}
hit = {k: np.mean([right(s) for s in v]) for k, v in stranger.items()}
noise = np.random.default_rng(0).integers(0, 256, (128, 128, 3), dtype=np.uint8)
strange = {"motorcycle": photo, "noise": noise}
for name in ("astronaut", "coffee", "chelsea", "rocket"):
    strange[name] = getattr(skimage.data, name)()
sure |= {name: confidence(picture) for name, picture in strange.items()}

# %% tags=["hide-input"] mystnb={"figure": {"name": "fig-19-sure", "caption": "How sure the network is of its classes, and how often it is right, where that is known. Left, rooms of three difficulties, six each; it was trained on the first. Right, pictures for most of which it has no word."}, "image": {"alt": "Bars for nine kinds of pictures. For easy rooms confidence and accuracy are both near one. For medium and full rooms confidence falls a little and accuracy to a half and a third. For photographs and noise confidence is between two thirds and nine tenths."}}
figure, axis = plt.subplots(figsize=(7.5, 2.7))
names = ("easy", "medium", "full", "motorcycle", *strange)
names = tuple(dict.fromkeys(names))
for x, name in enumerate(names):
    axis.bar(
        x - 0.2, sure[name], 0.38, color=blue, label="sure" if x == 0 else None
    )
    if name in hit:
        axis.bar(
            x + 0.2,
            hit[name],
            0.38,
            color=orange,
            label="right" if x == 0 else None,
        )
axis.set_xticks(range(len(names)), names, fontsize=9)
axis.set(ylabel="share", ylim=(0, 1.05))
_ = axis.legend(loc="upper right", ncols=2)

# %%
for name in hit:
    print(f"{name:8} sure {sure[name]:.1f}   right {hit[name]:.1f}")
calmest = min(sure[name] for name in strange)
print("of all strange pictures, noise too, surer than one half:", calmest > 0.5)
assert abs(sure["easy"] - hit["easy"]) < 0.05 < 0.3 < sure["full"] - hit["full"]

# %% [markdown]
# At home, sure means right ({numref}`fig-19-sure`). Abroad, confidence sinks by a little and being right by a lot. A softmax has to give its probability to some class, and
# *none of these* is not among them. So a low value is a warning, and a high one is no comfort. Whoever wants to use such answers needs labelled
# pictures of their own kind, a few dozen, and [chapter 2](../part1_foundations/02_measuring.ipynb).
#
# ### Which weights for photographs?
#
# Weights that learned from photographs. There are two ways.
#
# *Train them.* [Chapter 15](15_pascal_context_and_nyud_v2.ipynb) prepares the data, [chapter 16](16_training_on_cuda.ipynb) trains. For rooms, and wherever
# you need metres, take NYUD-v2 (40 classes, normals, depth, boundaries, one camera). For people, animals, vehicles and streets take PASCAL-Context (21
# classes, parts of people, saliency, normals, boundaries, no depth). A pretrained encoder does most of the work of leaving home. Then
# `mlore-edu predict runs/NAME photo.jpg` is the command from above.
#
# *Or load those of MLoRE's authors.* They publish three checkpoints, which the library reads into its own model:
#
# ```python
# from mlore_edu.released import released_model
#
# model = released_model("the file that you have fetched")  # tasks, widths and size are read from it
# answers = me.predict(model, "photo.jpg")
# me.save_pretrained(model, "mlore_pascal")  # from now on: mlore-edu predict mlore_pascal ...
# ```
#
# The authors' code, with which the checkpoints come, is under CC BY-NC (not for commercial use); read it before you build on their weights. Neither way was walked to its end here:
# neither data nor checkpoints were within reach of the machines that this book was written on. What could be tested without
# them is ([chapter 9](../part2_mlore/09_mlore_assembled.ipynb)).
#
# ## To save and to share
#
# A model is a few numbers and the way they are put together. `save_pretrained` writes both, and a card for people to read. We fuse the
# network first, to share the form that is meant for use.

# %%
told = json.loads(Path("../models/mlore/metrics.json").read_text())["metrics"]
fused = me.fuse(model)
folder = me.save_pretrained(fused, desk / "shared", metrics=told)
again = me.from_pretrained(folder)
images = framed(source)[None]
with torch.inference_mode():
    first, second = fused(images).predictions, again(images).predictions
print(sorted(path.name for path in folder.iterdir()))
print(
    "the same answers, bit for bit:", all(first[n].equal(second[n]) for n in first)
)

# %%
card = (folder / "README.md").read_text()
print(card[card.index("# ") : card.index("```python")].strip())

# %% [markdown]
# `hf upload OWNER/NAME shared` puts the three files on the Hugging Face Hub, and then `me.from_pretrained("OWNER/NAME")` loads them anywhere. (Without a network we tried neither here; the tests put a stand-in in the Hub's place.) Before you
# do, read the card's last section. Weights carry the terms of the data they learned from. Dollhouse has none but the book's own; the photographs and
# labels of PASCAL-Context and NYUD-v2 do, and it is you who publishes.
#
# Why *safetensors*, and not PyTorch's old `torch.save`? Because that was pickle, and a pickle is a program:


# %%
class Weights:
    def __reduce__(self):
        return print, ("I am code, and I run while you load me.",)


_ = pickle.loads(pickle.dumps(Weights()))

# %% [markdown]
# It might have done anything with your files. A safetensors file can do nothing: eight bytes say how long the table of contents is, the table is JSON, and
# the rest are numbers. Its reader fits into a cell.

# %%
content = (folder / "model.safetensors").read_bytes()
start = 8 + int.from_bytes(content[:8], "little")
table_of_contents = json.loads(content[8:start])


def tensor(name):
    entry = table_of_contents[name]
    begin, end = entry["data_offsets"]
    return np.frombuffer(content[start + begin : start + end], "<f4").reshape(
        entry["shape"]
    )


# %%
name = "heads.depth.predict.weight"
print(name, table_of_contents[name]["dtype"], table_of_contents[name]["shape"])
assert np.array_equal(tensor(name), fused.state_dict()[name])

# %% [markdown]
# ## Without this library
#
# A telephone or a web service has no use for our Python. What runs there is a **graph**: a list of operations with their inputs and outputs. `torch.export`
# makes it by running the model once on symbols and noting what is done.

# %%
from mlore_edu.export import trace

program = trace(fused)
nodes = [node for node in program.graph.nodes if node.op == "call_function"]
size = next(n for n in program.graph.nodes if n.name == "images").meta["val"].shape
print("first size is a symbol:", not isinstance(size[0], int), "- then", *size[1:])


# %%
class Convolutions(torch.overrides.TorchFunctionMode):
    """Counts the convolutions that run under it."""

    count = 0

    def __torch_function__(self, function, types, args=(), kwargs=None):
        self.count += function is torch.conv2d
        return function(*args, **(kwargs or {}))


# %%
for name, network in (("as trained", model), ("fused", fused)):
    cost = me.count(network, (128, 128))
    with Convolutions() as counted, torch.no_grad():
        network(torch.zeros(1, 3, 128, 128))
    print(f"{name:11} {counted.count} convolutions, {cost.macs / 1e9:.2f} G "
          f"multiply-adds, {cost.parameters / 1e6:.2f} M weights")  # fmt: skip
recorded = sum("conv2d" in str(node.target) for node in nodes)
print("and in the fused graph:", recorded)

# %% [markdown]
# Six modules, three convolutions fewer each: the experts, the generic path and the two steps of the task expert have become one (chapter 8). The multiplications shrink by less than at the
# papers' sizes, and here the weights grow, because each expert is stored as a full kernel so that it need not be composed again
# (`mode="on_the_fly"` stores the factors instead). Whether it is also *faster* depends on what runs the graph: measure it there.
# (On the one CPU core where we did, onnxruntime ran the fused shipped network in somewhat less time than the unfused, and both in less than PyTorch.)
#
# Two things may go wrong in a graph without a word. A number of images that was seen while tracing may be taken for a constant, and an operation may
# mean something slightly different elsewhere. Both are found by comparing. Let $P$ be the model's output and $\hat P$ the graph's, for one task:
#
# ```{math}
# :label: eq-19-parity
# \delta = \frac{\max |\hat P - P|}{\max |P|} .
# ```


# %%
def worst(expected, found):
    """The largest share over all tasks; nan if there is one."""
    return max(
        ((found[n] - p).abs().max() / p.abs().max()).item()
        for n, p in expected.items()
    )


runner = program.module()
for batch in (1, 3):  # traced with two
    images = torch.randn(batch, 3, 128, 128)
    with torch.inference_mode():
        off = worst(fused(images).predictions, runner(images))
    print(f"{batch} images: at most 1e-5 off: {off <= 1e-5}")

# %% [markdown]
# The more widespread format is ONNX. `me.export_model` writes the file, loads it into onnxruntime, which knows nothing of PyTorch, compares for one and for three
# images, and leaves no file behind if any task is off by more than $10^{-4}$. The command is `mlore-edu export RUN --fuse --format onnx`. Two
# steps of MLoRE need other words there: a sort that keeps the order of ties, and convolutions whose number of groups depends on the batch (each image has
# a kernel of its own, which is the point of MLoRE); `mlore_edu/export.py` says how.

# Exporters look at each node many times, so for the notebook we take a shallow network of two tasks, fresh from the die. Parity is a property of the graph, not of
# what was learned. (For the shipped network: `mlore-edu export book/models/mlore --fuse --format onnx`.)

# %%
torch.manual_seed(0)
two = tasks.subset("semseg", "depth")
options = {"variant": "released", "experts": 4, "blocks": (3,)}
shallow = me.fuse(me.build_model("mlore_vit_nano", two, (64, 96), **options).eval())
differences = me.export_model(shallow, desk / "shallow.onnx")
for batch, by_task in differences.items():
    print(f"{batch} images: all tasks within 1e-4: {max(by_task.values()) <= 1e-4}")

# %% [markdown]
# And now the whole way once more, as it would be on another machine: a file, Pillow, numpy, onnxruntime. No PyTorch, no mlore_edu. All that must be known travels in the
# file as JSON.

# %%
import onnxruntime

session = onnxruntime.InferenceSession(
    desk / "shallow.onnx", providers=["CPUExecutionProvider"]
)
about = json.loads(session.get_modelmeta().custom_metadata_map["mlore_edu"])
named = [task["name"] for task in about["tasks"]]
print(about["model"], about["img_size"], about["fused"], named)

# %%
fitting = Image.fromarray(room.image).resize((96, 64))
values = np.asarray(fitting) / 255  # (64, 96, 3)
values = (values - about["image_mean"]) / about["image_std"]
batch = np.moveaxis(values, -1, 0)[None].astype(np.float32)  # (1, 3, 64, 96)
outputs = dict(zip(named, session.run(named, {"images": batch})))
elsewhere = outputs["semseg"][0].argmax(axis=0)  # (64, 96)

# %%
here = me.predict(shallow, fitting)
agree = (here["semseg"].numpy() == elsewhere).mean()
print("same classes in more than 99 % of the pixels:", agree > 0.99)
assert np.allclose(here["depth"][0], outputs["depth"][0, 0], atol=1e-3)

# %% [markdown]
# ## A page to try it
#
# To show it to someone, `mlore-edu demo mlore` opens a page in the browser at `http://127.0.0.1:7860`: drop a photograph, see every answer over it, move the mouse for
# the names of the classes. It runs on your machine and sends nothing elsewhere. (It needs the package `gradio`: `pip install gradio`.) We do not start
# a server in a notebook; {numref}`fig-19-page` is a photograph of one, made by `python book/figures/make_demo.py`.

# %% tags=["hide-input"] mystnb={"figure": {"name": "fig-19-page", "caption": "The page of `mlore-edu demo` with a room of Dollhouse."}, "image": {"alt": "A web page titled All answers from one image. Above, a rendered room with a person; below in two rows the segmentation with a legend of class names, the body parts with a legend, saliency, surface normals, depth and boundaries."}}
from IPython import display

display.Image("../figures/demo.png", width=750)

# %% [markdown]
# ## When it fails
#
# | what you see | why | what to do |
# |---|---|---|
# | `… is no image that Pillow can read` | an error page, a RAW or HEIC file | open it with a viewer; save it as JPEG or PNG |
# | `… is damaged` | an interrupted download or a bad disk | fetch it again |
# | `… is there already and not an empty folder` | nothing is overwritten | another `--out` |
# | clear answers that have nothing to do with the picture | weights from another world ({numref}`fig-19-photo`) | weights that learned from pictures like yours |
# | good in the middle, specks at the borders | padding that training never showed | `--enlarge` for small pictures; squares; train with `--augmentation field` |
# | right shapes, metres off by a factor | another camera | measure the factor, {numref}`fig-19-focal`; then `--focal-ratio` |
# | a film flickers | each picture is answered alone | average scores over neighbouring pictures |
# | `Films need the package av` | optional | `pip install av` |
# | `the exported model differs from the model` | the format changed an operation | the other format; report it |
#
# ## Exercises
#
# ```{exercise} On white
# :label: ex-19-white
# Write `on_white(rgba)`: what a viewer shows of a picture `(H, W, 4)` of bytes, red, green, blue and opacity, on white paper, as `(H, W, 3)` from 0 to 255.
# ```

# %%
from mlore_edu.exercises import ch19


def on_white(rgba): ...


_ = ch19.check_on_white(on_white)

# %% [markdown]
# ```{solution-start} ex-19-white
# :class: dropdown
# ```


# %% jupyter={"source_hidden": true}
def on_white(rgba):
    opacity = rgba[..., 3:] / 255  # (H, W, 1)
    return opacity * rgba[..., :3] + (1 - opacity) * 255


_ = ch19.check_on_white(on_white)

# %% [markdown]
# ```{solution-end}
# ```
#
# ```{exercise} Out of the frame
# :label: ex-19-out
# Write `to_own_size(scores, window, size)`: from scores `(K, H, W)` of a whole frame, the window `(top, left, height, width)` in which the image lies, and
# the image's own size, the class of each of its pixels.
# ```


# %%
def to_own_size(scores, window, size): ...


_ = ch19.check_to_own_size(to_own_size)

# %% [markdown]
# ```{solution-start} ex-19-out
# :class: dropdown
# ```
# First the window, so that no padding is mixed in; then the size; the class last.


# %% jupyter={"source_hidden": true}
def to_own_size(scores, window, size):
    top, left, height, width = window
    inner = scores[None, :, top : top + height, left : left + width]
    return resize(inner, size)[0].argmax(dim=0)  # (H, W)


_ = ch19.check_to_own_size(to_own_size)

# %% [markdown]
# ```{solution-end}
# ```
#
# ```{exercise} Another camera
# :label: ex-19-camera
# Write `metres(predicted, focal, width, seen_width, training_focal)`: the true distance where a network that measures size has predicted one, for
# a photograph `width` pixels wide of a camera of `focal` pixels, which the network saw `seen_width` pixels wide, after training with a camera of
# `training_focal` pixels.
# ```


# %%
def metres(predicted, focal, width, seen_width, training_focal): ...


_ = ch19.check_metres(metres)

# %% [markdown]
# ```{solution-start} ex-19-camera
# :class: dropdown
# ```


# %% jupyter={"source_hidden": true}
def metres(predicted, focal, width, seen_width, training_focal):
    seen_focal = focal * seen_width / width  # of the picture that the network saw
    return predicted * seen_focal / training_focal


_ = ch19.check_metres(metres)

# %% [markdown]
# ```{solution-end}
# ```
#
# ```{exercise} Parity
# :label: ex-19-parity
# Write `agree(expected, found, tolerance)`: whether two arrays have one shape and {eq}`eq-19-parity` is at most the tolerance. A single *nan* must
# not pass.
# ```


# %%
def agree(expected, found, tolerance): ...


_ = ch19.check_agree(agree)

# %% [markdown]
# ```{solution-start} ex-19-parity
# :class: dropdown
# ```
# Every comparison with *nan* is false. Ask for what must be true, and it does not pass.


# %% jupyter={"source_hidden": true}
def agree(expected, found, tolerance):
    if expected.shape != found.shape:
        return False
    off = np.abs(found - expected).max() / np.abs(expected).max()
    return bool(off <= tolerance)


_ = ch19.check_agree(agree)
table.cleanup()

# %% [markdown]
# ```{solution-end}
# ```
#
# ## Takeaways
#
# - `mlore-edu predict RUN PHOTOS` answers any picture at its own size, writes a picture of the answers and, with `--arrays`, the answers themselves; one
#   bad file is one sentence.
# - Read images as a viewer shows them. A forgotten note which way is up costs more than a decoder gains.
# - Into the frame and out again: one factor for both sides, pixels as squares, scores before classes. Padding is right for networks that were trained with it, and
#   costs those that were not.
# - Metres hold for the training's camera. The formula for another one is right for a network that measures size; whether yours does, a dozen pictures tell.
# - Confidence means being right only where the weights are at home.
# - Share safetensors, not pickles; read the terms of the data first. An exported file is worth as much as its comparison with the model.
#
# You can now take a network of this book to your own pictures, judge what it says about them, and hand it on to others in a form that needs none of our code. What
# remains is to build one that is not in any of the papers: [chapter 20](20_build_your_own.ipynb).
