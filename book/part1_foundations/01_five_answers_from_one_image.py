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
# # Five answers from one image
#
# Look at a photograph of a room for a second. You know what stands where, who is in it, how far away things are, which way their surfaces
# face, and where one thing ends and the next begins. **What exactly can one photograph tell, pixel by pixel, and how is each answer written
# down so that a network can learn it?**
#
# {numref}`fig-01-scene` is one picture with six such answers. The code that draws it stands first; read it or skip it, the library does the work.

# %%
import matplotlib.pyplot as plt
import numpy as np

import mlore_edu as me
from mlore_edu import plots
from mlore_edu.pictures import palette, to_rgb

plots.use_style()
CLASSES = me.DOLLHOUSE["semseg"].class_names


# %%
def richness(seed):
    """How many body parts and classes a scene shows, and how much of people."""
    small = me.scene(seed, 64)
    parts, classes = small.human_parts, small.semseg
    return len(np.unique(parts)), len(np.unique(classes)), (parts > 0).sum()


room = me.scene(max(range(40), key=richness), 256)


# %% tags=["hide-input"]
def put(axis, picture, title="", **options):
    """Draw a picture in a thin frame, so that white pixels stand out from the page."""
    axis.set(xticks=[], yticks=[], title=title)
    axis.spines[:].set(visible=True, color="#bbbbbb")
    return axis.imshow(picture, interpolation="antialiased", **options)


def look(scene):
    """Draw an image large, and its six labels beside it."""
    layout = [
        ["image", "image", "semseg", "human_parts", "saliency"],
        ["image", "image", "normals", "depth", "edge"],
    ]
    figure, axes = plt.subplot_mosaic(layout, figsize=(7.5, 3.7))
    for name, axis in axes.items():
        title = "Semantics" if name == "semseg" else plots.TITLES[name]
        put(axis, to_rgb(name, getattr(scene, name)), title)
    plots.class_legend(figure, "semseg", scene.semseg, CLASSES)


# %% mystnb={"figure": {"name": "fig-01-scene", "caption": "One image, six answers. The legend names the colours of the semantic classes. Normals: x, y and z as red, green and blue. Depth: near is bright."}, "image": {"alt": "On the left a rendered room with a person in it; on the right six small maps of the same room: coloured semantic classes, the person's body parts, the salient region in white, surface normals, depth and thin black boundaries."}}
look(room)

# %% [markdown]
# ## What you will be able to do
#
# - say what each of the six labels means, and read and write the files in which PASCAL-Context and NYUD-v2 store it;
# - render a small room from its equations, with a depth and a normal for each pixel, and use one label to check another;
# - say what every encoding loses, and measure it;
# - flip, zoom, crop and pad an image together with its labels without spoiling any of them;
# - name the statistics of such data that decide how losses and metrics must be built.
#
# *Before you start:* Python, numpy and the geometry of vectors. *Time:* 45 minutes of reading, a quarter of a minute of running.
# *Hardware:* two CPU cores, 4 GB of memory; no GPU, no download.

# %% [markdown]
# ## Three sets of questions
#
# The image comes from **Dollhouse**, the rendered rooms that travel with this book. They are there so that every chapter runs without a
# download, and because their labels are exact: the program that draws the room knows the answers. The papers of this book use photographs.
# *PASCAL-Context* {cite}`mottaghi2014context` asks **five** questions about pictures of everyday life, hence this chapter's title;
# *NYUD-v2* {cite}`silberman2012nyud` asks **four** about rooms seen by a depth camera. Dollhouse asks all **six**.
#
# The library writes each question down once, as a `Task`, and each data set's questions as a `TaskSet`.

# %%
task_sets = (me.PASCAL_CONTEXT, me.NYUD_V2, me.DOLLHOUSE)
names = [f"{tasks.name:>14}" for tasks in task_sets]
print("channels to predict   ", *names, " metric")
for task in me.DOLLHOUSE:
    print(f"{task.title:22}", end=" ")
    for tasks in task_sets:
        channels = tasks[task.name].channels if task.name in tasks else "–"
        print(f"{channels:>14}", end=" ")
    print("", task.metric)

# %% [markdown]
# Four of the six are *classifications* with a few classes, from 2 to 40. Normals and depth are *regressions*: three
# numbers and one number for each pixel. The metrics in the last column are the subject of chapter 2.
#
# In memory a scene is seven arrays with the same height and width.

# %%
for name in ("image", *me.DOLLHOUSE.names):
    array = getattr(room, name)
    span = f"from {array.min():.0f} to {array.max():.0f}"
    print(f"{name:12} {array.shape!s:15} {array.dtype!s:8} {span}")

# %% [markdown]
# **Semantic segmentation** gives each pixel a class. **Human parts** divide people, and only people, into six. **Saliency** says what
# catches the eye first. A **normal** is the unit vector that stands upright on the surface, in the camera's axes: $x$ to the right, $y$ up,
# $z$ towards the camera, so that a wall which faces you has $(0, 0, 1)$. **Depth** is the distance in metres along the camera's axis.
# **Boundaries** are the lines at which one thing stops.
#
# Walk through a few scenes before you read on. `difficulty` sets how many kinds of things there are and how much light and texture vary. {numref}`fig-01-explore` shows where you start.

# %%
from ipywidgets import IntSlider, SelectionSlider, interact


def explore(seed, difficulty, label):
    """Draw one scene beside one of its labels."""
    scene = me.scene(seed, 128, difficulty)
    pair = {name: getattr(scene, name) for name in ("image", label)}
    plots.show_grid([pair], width=5.5)
    plt.show()


# %% tags=["nbval-ignore-output"]
_ = interact(
    explore,
    seed=IntSlider(3, 0, 99),
    difficulty=SelectionSlider(options=["easy", "medium", "full"], value="full"),
    label=SelectionSlider(options=me.DOLLHOUSE.names, value="normals"),
)

# %% mystnb={"figure": {"name": "fig-01-explore", "caption": "What the explorer shows first: a scene of full difficulty and its normals."}, "image": {"alt": "A rendered room and beside it the same room in the colours of its surface normals: flat walls have one colour each, round things shade from colour to colour."}}
explore(3, "full", "normals")

# %% [markdown]
# ## How a scene is made
#
# How can a program know the depth and the normal of every pixel? It asks each pixel's ray what it meets, an idea from the first days of
# computer graphics {cite}`appel1968shading`. The camera sits at the origin and looks along $-z$. Its focal length $f$ is measured in pixels.
# Pixel centres lie at $(u, v)$, with $u$ running right and $v$ down, in an image $W$ wide and $H$ high. The ray of a pixel is
#
# ```{math}
# :label: eq-01-ray
# \mathbf p(t) = t\,\mathbf d, \qquad \mathbf d = \Bigl(\frac{u - W/2}{f},\; \frac{H/2 - v}{f},\; -1\Bigr).
# ```
#
# Because the last component of $\mathbf d$ is $-1$, the parameter $t$ *is* the depth of the point it reaches.


# %%
def camera_rays(shape, focal):
    """Directions d of all pixels, (3, H, W)."""
    height, width = shape
    v, u = np.mgrid[:height, :width] + 0.5  # pixel centres, (H, W) each
    right, up = (u - width / 2) / focal, (height / 2 - v) / focal
    return np.stack([right, up, -np.ones(shape)])  # (3, H, W)


# %% [markdown]
# Put three surfaces into the world, a floor, a wall and a ball, and ask where a ray meets them. The floor lies a height $h$ below the
# camera, so $t\,d_y = -h$. The wall stands at distance $D$ and faces us, so $t = D$ for every ray. The ball has centre $\mathbf c$ and radius
# $r$; its points satisfy $\lVert t\,\mathbf d - \mathbf c\rVert = r$, a quadratic equation whose smaller solution is the near side:
#
# ```{math}
# :label: eq-01-hits
# \begin{aligned}
# t_\text{floor} &= -h / d_y \quad (d_y < 0), \qquad\qquad t_\text{wall} = D, \\
# t_\text{ball} &= \frac{\mathbf d^{\!\top}\mathbf c - \sqrt{(\mathbf d^{\!\top}\mathbf c)^2 - \lVert\mathbf d\rVert^2\,(\lVert\mathbf c\rVert^2 - r^2)}}{\lVert\mathbf d\rVert^2}.
# \end{aligned}
# ```
#
# Whatever comes first hides the rest, as {numref}`fig-01-rays` shows.

# %% tags=["hide-input"] mystnb={"figure": {"name": "fig-01-rays", "caption": "The same three surfaces from the side. Each pixel sends one ray; the first surface it meets is what the pixel shows. Depth t is measured along the camera's axis, so it is shorter than the ray."}, "image": {"alt": "A side view: from the camera on the left, three rays pass through a short vertical line, the image. One ends on the floor, one on a ball, one on a wall. A dashed line below marks the depth of the point on the ball."}}
figure, axis = plt.subplots(figsize=(6, 3))
axis.plot([-0.3, 5], [0, 0], color="#9c7450", lw=3)  # the floor, at height 0
axis.plot([5, 5], [0, 2.4], color="#666666", lw=3)
axis.add_patch(plt.Circle((3, 0.6), 0.6, color="#e69f00"))
axis.plot([0.5, 0.5], [0.95, 1.85], color="black", lw=2)
axis.plot(0, 1.4, "o", color="black", ms=8)
for end_depth, end_height in ((1.9, 0), (2.5, 0.93), (5, 2.0)):
    axis.plot([0, end_depth], [1.4, end_height], color="#0072b2")
    axis.plot(end_depth, end_height, "o", color="#0072b2")
axis.plot([0, 2.5, 2.5], [-0.25, -0.25, 0.93], "--", color="#0072b2", lw=1)
axis.plot([0, 0], [-0.25, 1.4], "--", color="#0072b2", lw=1)
notes = {
    "camera": (-0.25, 1.65),
    "image": (0.6, 1.75),
    "depth t": (1.15, -0.5),
    "ball": (3.7, 0.5),
    "floor": (4.3, 0.1),
    "wall": (5.1, 1.2),
    "h": (0.05, 0.6),
    r"ray $t\,\mathbf{d}$": (3.2, 1.98),
}
for note, (x, y) in notes.items():
    axis.text(x, y, note)
axis.set(aspect="equal", xlim=(-0.5, 5.6), ylim=(-0.6, 2.5))
axis.set_axis_off()

# %%
focal, h, D, c, r = 115.0, 1.4, 5.0, np.array([0.4, -0.8, -3.0]), 0.6
d = camera_rays((128, 128), focal)  # (3, 128, 128)
along, square = np.einsum("chw,c->hw", d, c), (d**2).sum(0)
under_root = along**2 - square * (c @ c - r**2)

t_floor = np.where(d[1] < 0, h / np.maximum(-d[1], 1e-9), np.inf)
t_wall = np.full(t_floor.shape, D)
t_ball = (along - np.sqrt(np.maximum(under_root, 0))) / square
t_ball = np.where(under_root > 0, t_ball, np.inf)  # rays that pass by

t = np.stack([t_floor, t_wall, t_ball])  # (3, H, W), one layer per surface
depth, surface = t.min(0), t.argmin(0)  # (H, W) both

# %% [markdown]
# The normals come with the shapes: the floor's is $(0, 1, 0)$, the wall's $(0, 0, 1)$, and the ball's points from its centre to the surface.

# %%
points = depth * d  # (3, H, W), in metres
normals = (points - c[:, None, None]) / r  # the ball's, (3, H, W)
normals[:, surface == 0] = np.array([[0], [1], [0]])
normals[:, surface == 1] = np.array([[0], [0], [1]])

towards_light = np.array([0.4, 0.7, 0.6])
cosine = np.einsum("chw,c->hw", normals, towards_light)  # (H, W)
shading = 0.25 + 0.75 * np.maximum(cosine, 0)  # matt surfaces, no shadows


# %% tags=["hide-input"]
def show_row(pictures, width=7.5):
    """Draw titled pictures side by side; (H, W) arrays as heat maps with a colour bar."""
    shape = next(iter(pictures.values())).shape
    side = width / len(pictures) * shape[0] / shape[1]
    heat = any(picture.ndim == 2 for picture in pictures.values())
    size = (width, side + 0.35 + 0.35 * heat)
    figure, axes = plt.subplots(1, len(pictures), figsize=size, squeeze=False)
    for axis, (title, picture) in zip(axes.flat, pictures.items(), strict=True):
        drawn = put(axis, picture, title, cmap="cividis", vmin=0)
        if picture.ndim == 2:
            below = axis.inset_axes([0.05, -0.1, 0.9, 0.05])
            ticks = plt.MaxNLocator(4, steps=[1, 2, 3, 5, 10])
            figure.colorbar(drawn, cax=below, orientation="horizontal", ticks=ticks)


# %% mystnb={"figure": {"name": "fig-01-renderer", "caption": "A room of three surfaces, rendered in the cells above, with four of its labels. The wall has one depth everywhere, because depth is measured along the camera's axis."}, "image": {"alt": "Five small pictures: a shaded ball on a floor before a wall, the three surfaces in three colours, the normals with the ball shading through all colours, the depth getting darker with distance, and the outlines of the surfaces."}}
changes = np.zeros(surface.shape)
changes[1:] = surface[1:] != surface[:-1]
changes[:, 1:] += surface[:, 1:] != surface[:, :-1]
show_row(
    {
        "Image": to_rgb("saliency", shading),
        "Surfaces": to_rgb("human_parts", surface + 1),
        "Normals": to_rgb("normals", normals),
        "Depth": to_rgb("depth", depth),
        "Boundaries": to_rgb("edge", np.minimum(changes, 1)),
    }
)

# %% [markdown]
# {numref}`fig-01-renderer` is what these few lines see. Dollhouse adds boxes, cylinders and capsules (people are made of capsules), textures, lamps
# and soft shadows, but its labels are made in this way. The library's ray caster, `mlore_edu/data/raycasting.py`, takes rays of length one and
# returns distances along them; a distance times the ray's component along the camera's axis is a depth.

# %%
from mlore_edu.data.raycasting import Primitive, cast

face_us = np.array(
    [[1, 0, 0], [0, 0, 1], [0, 1, 0]]
)  # its second column: towards us
solids = [
    Primitive("plane", np.array([0, -h, 0]), np.eye(3), np.zeros(3)),
    Primitive("plane", np.array([0, 0, -D]), face_us, np.zeros(3)),
    Primitive("ellipsoid", c, np.eye(3), np.full(3, r)),
]
unit = (d / np.sqrt(square)).reshape(3, -1)  # (3, H·W)
distance, first = cast(solids, np.zeros((3, 1)), unit)

np.testing.assert_array_equal(first.reshape(surface.shape), surface)
library_depth = (distance * -unit[2]).reshape(depth.shape)  # (H, W)
np.testing.assert_allclose(library_depth, depth, rtol=1e-5)

# %% [markdown]
# ### One pixel of the floor tells the rest of it
#
# Now turn to the full room, whose camera is tilted. A plane with normal $\mathbf n$ consists of the points with
# $\mathbf n^{\!\top}\mathbf p = -h$, where $h$ is the camera's height above it. One labelled pixel gives $\mathbf n$ and $\mathbf p$, hence
# $h$, and {eq}`eq-01-ray` then gives the depth of every other floor pixel: $t = -h / \mathbf n^{\!\top}\mathbf d$.

# %%
d = camera_rays(room.depth.shape, room.meta["focal"])  # (3, H, W)
points = room.depth * d
on_floor = room.semseg == CLASSES.index("floor")
v, u = np.argwhere(on_floor)[-1]  # the last floor pixel, row by row
n = room.normals[v, u]
h = -n @ points[:, v, u]
predicted = -h / np.einsum("c,chw->hw", n, d)

np.testing.assert_allclose(predicted[on_floor], room.depth[on_floor], rtol=1e-3)
print(f"the camera is {h:.1f} m above the floor")

# %% [markdown]
# With the floor known, depth turns into another quantity, $\mathbf n^{\!\top}\mathbf p + h$: how high above the floor every pixel lies
# ({numref}`fig-01-height`).

# %% mystnb={"figure": {"name": "fig-01-height", "caption": "From depth to height above the floor, in metres. Nobody labelled heights: the floor's normal and the depth contain them."}, "image": {"alt": "Three pictures of one room: the image, its depth, and a heat map of heights, dark on the floor and brighter the higher a point of the walls, the furniture and the person lies."}}
height = np.einsum("c,chw->hw", n, points) + h
show_row(
    {
        "Image": room.image,
        "Depth": to_rgb("depth", room.depth),
        "Height above the floor [m]": np.maximum(height, 0),
    }
)

# %% [markdown]
# ### Normals are the slope of depth
#
# The labels of a real data set cannot be checked against the program that drew them, but they can be checked against each other. Move one
# pixel to the right and the point on the surface moves by $\partial\mathbf p/\partial u$; move one pixel down and it moves by
# $\partial\mathbf p/\partial v$. Both lie in the surface, so their cross product stands upright on it:
#
# ```{math}
# :label: eq-01-normal
# \mathbf n \;\propto\; \frac{\partial \mathbf p}{\partial v} \times \frac{\partial \mathbf p}{\partial u},
# \qquad \mathbf p(u, v) = \text{depth}(u, v)\;\mathbf d(u, v).
# ```


# %%
def normals_from_depth(depth, focal):
    """Unit normals (3, H, W) of a depth map (H, W)."""
    points = depth * camera_rays(depth.shape, focal)  # (3, H, W)
    down, right = np.gradient(points, axis=(1, 2))  # (3, H, W) each
    normal = np.cross(down, right, axis=0)
    return normal / np.linalg.norm(normal, axis=0)


def angle(a, b):
    """Degrees between unit vectors (3, H, W)."""
    opposite, adjacent = (
        np.linalg.norm(a - b, axis=0),
        np.linalg.norm(a + b, axis=0),
    )
    return np.degrees(2 * np.arctan2(opposite, adjacent))  # (H, W)


# %% [markdown]
# On a flat surface the differences lie in the plane exactly, so nothing but rounding may remain. We assert it inside walls, where a pixel and
# its eight neighbours are the same wall, and look at the rest in {numref}`fig-01-gradient`.

# %%
from scipy.ndimage import maximum_filter, minimum_filter

labelled = np.moveaxis(room.normals, -1, 0)  # (3, H, W)
measured = normals_from_depth(room.depth, room.meta["focal"])
error = angle(measured, labelled)

inside = maximum_filter(room.instances, 3) == minimum_filter(room.instances, 3)
wall = inside & (room.semseg == CLASSES.index("wall"))
assert np.quantile(error[wall], 0.99) < 0.1  # degrees
assert np.median(error[~inside]) > 5  # across boundaries it means nothing

# %% mystnb={"figure": {"name": "fig-01-gradient", "caption": "Normals from the label and from the slope of the depth map, and the angle between them in degrees (drawn up to 30). Flat and round surfaces agree; where the difference reaches across a boundary it compares points of two things."}, "image": {"alt": "Three pictures: two almost equal maps of normals, and a heat map of the angle between them that is dark everywhere except along the outlines of things, where it is bright."}}
show_row(
    {
        "Label": to_rgb("normals", labelled),
        "From depth": to_rgb("normals", measured),
        "Angle between them [°]": np.minimum(error, 30),
    }
)

# %% [markdown]
# The normals of indoor data sets such as NYUD-v2 are computed from depth that a sensor measured. A slope is a difference, and differences
# amplify noise, so there the same computation needs smoothing. One centimetre of noise is enough to see why ({numref}`fig-01-noise`).

# %% mystnb={"figure": {"name": "fig-01-noise", "caption": "Normals from exact depth, from the same depth with one centimetre of random error in each pixel, and how far the latter are off (drawn up to 45°)."}, "image": {"alt": "Three pictures: a clean map of normals, the same map covered in coloured speckle, and a heat map of the angle between it and the label, strewn with bright pixels."}}
noise = np.random.default_rng(0).normal(0, 0.01, room.depth.shape)  # metres
noisy = normals_from_depth(room.depth + noise, room.meta["focal"])
assert np.median(angle(noisy, labelled)) > 10  # degrees
show_row(
    {
        "From exact depth": to_rgb("normals", measured),
        "With 1 cm of noise": to_rgb("normals", noisy),
        "Angle to the label [°]": np.minimum(angle(noisy, labelled), 45),
    }
)

# %% [markdown]
# ## How each answer is written down
#
# A label map has to become a file. Each of the field's formats is a small decision about what may be lost, and each has a trap. We encode
# one scene every way, decode it, and look at the difference.
#
# ### Classes: one byte, never a JPEG
#
# A class map is a picture whose grey values are names. PASCAL-Context stores 0 for background and 1 to 20 for the classes of PASCAL VOC
# {cite}`everingham2010pascal`; the value **255 means void**: this pixel does not count, neither in training nor in evaluation. A byte
# per pixel holds that, as long as the file format keeps every byte. PNG does. JPEG keeps what eyes notice, and the value between a wall and
# a person is then some third class. In our room more than one pixel in ten comes back with another class ({numref}`fig-01-jpeg`).

# %%
import io

from PIL import Image


def through_file(pixels, format):
    """What comes back after saving pixels as an image file and reading it again."""
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, format)
    return np.asarray(Image.open(file))


from_png, from_jpeg = (through_file(room.semseg, kind) for kind in ("PNG", "JPEG"))
assert np.array_equal(from_png, room.semseg)
assert (from_jpeg != room.semseg).mean() > 0.1

# %% mystnb={"figure": {"name": "fig-01-jpeg", "caption": "A class map read back from a PNG and from a JPEG file. JPEG invents classes, first of all along boundaries."}, "image": {"alt": "Two class maps of one room and a black and white picture. The left map is clean; the middle one is littered with wrongly coloured pixels along every outline; the picture marks them in white."}}
show_row(
    {
        "From PNG": to_rgb("semseg", from_png),
        "From JPEG": to_rgb("semseg", np.minimum(from_jpeg, 14)),
        "Changed": to_rgb("saliency", from_jpeg != room.semseg),
    }
)

# %% [markdown]
# NYUD-v2's 40 classes {cite}`gupta2013perceptual` are numbered from 1, because **0 is taken: it means unlabelled**. Reading them therefore
# takes a shift: 1 becomes 0, 40 becomes 39, and 0 becomes 255. Whoever forgets it teaches a network to call every wall a floor and to ignore
# nothing; and when a 40 turns up where classes end at 39, training stops with an error. In {numref}`fig-01-nyud` we call an eighth of the room
# unlabelled, store it the NYUD way, and read it both ways.

# %%
from mlore_edu.data import labels
from mlore_edu.data.dollhouse_layouts import TO_NYUD

nyud_classes = TO_NYUD[room.semseg]  # Dollhouse's classes among NYUD's 40, (H, W)
nyud_classes[:, 32:64] = 255
stored = labels.encode_nyud_semseg(nyud_classes)
assert (stored[:, 32:64] == 0).all()
assert np.array_equal(labels.decode_nyud_semseg(stored), nyud_classes)

names = me.NYUD_V2["semseg"].class_names
for name in ("wall", "chair", "person"):
    value = names.index(name) + 1
    print(
        f"{name} is stored as {value} and, without the shift, read as {names[value]}"
    )

# %% mystnb={"figure": {"name": "fig-01-nyud", "caption": "NYUD's classes read without and with the shift; white is ignored. Without it every class has its neighbour's name, and the unlabelled strip becomes a class."}, "image": {"alt": "An image and two class maps. In the middle one every region has another colour than in the right one; only the right one has a white strip for the unlabelled pixels."}}
show_row(
    {
        "Image": room.image,
        "Read without the shift": to_rgb("semseg", np.minimum(stored, 39), 40),
        "Read with the shift": to_rgb("semseg", nyud_classes, 40),
    }
)

# %% [markdown]
# ### Human parts: many names merged to six
#
# PASCAL-Part {cite}`chen2014detect` annotates 24 parts of a person, down to each eyebrow. They come as a MATLAB file per image, with a
# structure `anno` that lists objects, and for each object its parts, each a name and a mask. The field merges the names to six, those of {numref}`fig-01-parts`.

# %%
PARTS = me.DOLLHOUSE["human_parts"].class_names
for part in range(1, 7):
    names = [name for name, merged in labels.MERGED_PART.items() if merged == part]
    print(f"{part} {PARTS[part]:10} ←", *names)

# %% mystnb={"figure": {"name": "fig-01-parts", "caption": "The person in the room and the six parts. Clothes, skin and pose do not matter; hands count as lower arms, feet as lower legs."}, "image": {"alt": "Two pictures: the part of the room with a person in it, and the same part with head, torso, upper and lower arms, upper and lower legs in six colours on dark ground."}}
rows, columns = np.nonzero(room.human_parts)
side = max(np.ptp(rows), np.ptp(columns)) + 1
top, left = min(rows.min(), 256 - side), min(columns.min(), 256 - side)
box = np.s_[top : top + side, left : left + side]
people = to_rgb("human_parts", room.human_parts[box])
show_row({"Image": room.image[box], "Human parts": people}, width=5)
plots.class_legend(plt.gcf(), "human_parts", room.human_parts, PARTS)

# %% [markdown]
# Many photographs show nobody. If they counted as six classes of nothing, training would be dominated by empty answers, so the field has a
# rule: **an image or a crop without any part is ignored for this task, 255 everywhere**.

# %%
nobody = np.zeros((4, 4), np.uint8)
assert (labels.no_parts_ignored(nobody) == 255).all()
assert np.array_equal(labels.no_parts_ignored(room.human_parts), room.human_parts)

# %% [markdown]
# ### Saliency: a network's opinion, cut at one half
#
# Nobody marked what is salient in PASCAL-Context. Its saliency and its normals are **pseudo-labels**: the outputs of networks trained
# elsewhere, saved as if they were annotation {cite}`maninis2019attentive`. Learning from another network's outputs is called
# *distillation*, and a score against such labels measures agreement with the teacher, mistakes included.
#
# The teacher's probability $p$ is stored as the grey value $255\,p$, and a pixel is salient where the grey value divided by 255 is above one
# half. A soft teacher rounds off what is thin. We imitate one by blurring the exact mask; {numref}`fig-01-saliency` shows what is lost.

# %% mystnb={"figure": {"name": "fig-01-saliency", "caption": "An exact salient region, a soft answer as a network gives it, and the label that is read from it. Corners become round, and what is thin shrinks or vanishes."}, "image": {"alt": "Three grey pictures: a sharp white region, a blurred one, and a rounded one that lacks the thin parts of the first."}}
from scipy.ndimage import gaussian_filter

soft = np.uint8(255 * gaussian_filter(room.saliency.astype(float), 5))
read = labels.decode_saliency(soft)
show_row(
    {
        "Exact": to_rgb("saliency", room.saliency),
        "Soft answer": to_rgb("saliency", soft / 255),
        "Label": to_rgb("saliency", read),
    }
)

# %% [markdown]
# ### Normals: three bytes
#
# A normal has three components between −1 and 1. Both data sets store each in a byte, as a colour picture:
#
# ```{math}
# :label: eq-01-bytes
# v = \operatorname{round}\Bigl(255\,\frac{n + 1}{2}\Bigr), \qquad \hat n = \frac{2v}{255} - 1 .
# ```
#
# Rounding moves $v$ by at most one half, hence each component by at most $1/255$ and the vector by at most $\sqrt3/255$. Seen from the
# origin that is an angle of at most $\arcsin(\sqrt3/255)$, about 0.39°.


# %%
def encode(normals):
    return np.uint8(np.rint(255 * (normals.astype(float) + 1) / 2))


def decode(pixels):
    vectors = pixels * (2 / 255) - 1  # 2 * pixels would overflow a byte
    return vectors / np.linalg.norm(vectors, axis=-1, keepdims=True)  # (H, W, 3)


def degrees_lost(pixels):
    """Angle between the labels and what is read from pixels (H, W, 3)."""
    return angle(np.moveaxis(decode(pixels), -1, 0), labelled)  # (H, W)


pixels = encode(room.normals)  # (H, W, 3), uint8
assert np.array_equal(pixels, labels.encode_normals(room.normals))
np.testing.assert_allclose(decode(pixels), labels.decode_normals(pixels), atol=1e-6)
assert degrees_lost(pixels).max() <= np.degrees(np.arcsin(3**0.5 / 255))

# %% [markdown]
# Is that much? The networks in the papers' tables are wrong by 13 to 21 degrees on average {cite}`yang2024mlore`, so a few tenths do not matter.
# Two other things do. Zero would need $v = 127.5$, so the zero vector, which marks *no normal here*, **cannot be stored**. The NYUD build of the papers
# therefore scores every pixel, while PASCAL-Context trusts the distilled normals only where the class is one of 170 that NYUD also
# knows. And one of the archives in circulation holds normals as JPEG, with the consequence of {numref}`fig-01-bytes`.

# %% mystnb={"figure": {"name": "fig-01-bytes", "caption": "Degrees lost by storing normals in three bytes, as PNG and as JPEG (drawn up to 10°); note the two scales. PNG loses a constant fraction of a degree on each flat surface. JPEG adds ripples around every boundary."}, "image": {"alt": "Three pictures: normals; a heat map for PNG with one even shade per flat surface, all below 0.4 degrees; a heat map for JPEG with bright ripples along outlines, ten degrees and more."}}
from_jpeg = through_file(pixels, "JPEG")
show_row(
    {
        "Normals": to_rgb("normals", room.normals),
        "Lost in a PNG [°]": degrees_lost(pixels),
        "Lost in a JPEG [°]": np.minimum(degrees_lost(from_jpeg), 10),
    }
)

# %% [markdown]
# ### Depth: floats, and 0 for nothing
#
# A depth camera does not see everything: glass, shiny surfaces and shadows of its own projector give no answer. NYUD-v2 stores metres as
# floating-point `.npy` files with **0 for invalid**. Is a float not wasteful? Sixteen bits of millimetres would do. Eight bits
# over ten metres would not: a step is then 4 cm, and normals, the slope of depth, show it at once in {numref}`fig-01-depth`.

# %% mystnb={"figure": {"name": "fig-01-depth", "caption": "Normals computed from depth that was stored in three ways. Steps of 4 cm turn every slanted surface into a staircase."}, "image": {"alt": "Three maps of normals. With floats and with millimetres they look alike; with eight bits every slanted surface is covered with stripes, like contour lines on a map."}}
in_millimetres = np.uint16(np.rint(room.depth * 1000)) / 1000
in_8_bits = np.uint8(np.rint(room.depth * 255 / 10)) / 255 * 10
stored = {"Floats": room.depth, "Millimetres": in_millimetres, "8 bits": in_8_bits}
pictures = {}
for title, metres in stored.items():
    slope = normals_from_depth(metres, room.meta["focal"])
    pictures[f"{title} stored"] = to_rgb("normals", slope)
show_row(pictures)

# %% [markdown]
# Dollhouse's own folders use the millimetres; half a millimetre is the largest error.

# %%
read = labels.decode_depth(labels.encode_depth(room.depth))  # (H, W)
assert (
    np.abs(read - room.depth).max() <= 0.000501
)  # and a little rounding of floats

# %% [markdown]
# ### Boundaries: found in another label
#
# PASCAL-Context has no boundary files. Its boundaries are computed from `LabelMap`, a map of 459 classes. A pixel is a
# candidate where the *Laplacian* $L$ of the map $m$ is not zero: the sum of its four neighbours minus four times
# itself. The candidates are then thinned to lines one pixel wide ({numref}`fig-01-laplacian`). `LabelMap` names
# classes, so two chairs that touch have no boundary between them. The map we use here gives every thing a number of its
# own, so here they have one.
#
# ```{math}
# :label: eq-01-laplacian
# L_{v,u} = m_{v-1,u} + m_{v+1,u} + m_{v,u-1} + m_{v,u+1} - 4\,m_{v,u}
# ```

# %%
from scipy.ndimage import laplace

label_map = room.instances.astype(int)  # (H, W), every thing its own number
thick = laplace(label_map) != 0
thin = labels.thin(thick)
assert np.array_equal(labels.labelmap_boundaries(label_map), thin)

near_true_edge = maximum_filter(room.edge, 3)  # allows one pixel to each side
assert near_true_edge[thin == 1].mean() > 0.99

# %% mystnb={"figure": {"name": "fig-01-laplacian", "caption": "Boundaries from a label map: the map, its non-zero Laplacian, which marks both sides of every change, and the thinned lines. All pictures show the upper left quarter of the room enlarged."}, "image": {"alt": "Four enlarged pictures: coloured regions, thick black outlines two pixels wide, thin black outlines one pixel wide, and Dollhouse's own outlines, which run along the thin ones."}}
quarter = np.s_[:128, :128]
show_row(
    {
        "Label map": to_rgb("semseg", (label_map * 7 % 37)[quarter], 40),
        "Laplacian not zero": to_rgb("edge", thick[quarter].astype(float)),
        "Thinned": to_rgb("edge", thin[quarter]),
        "Dollhouse's label": to_rgb("edge", room.edge[quarter]),
    }
)

# %% [markdown]
# The rule has a blind spot. Where three regions lie side by side with numbers in arithmetic progression, the Laplacian of a middle region
# one pixel wide is zero. {ref}`ex-01-boundaries` asks for a rule without it.

# %%
print(
    laplace(np.array([[1, 1, 2, 3, 3]]))
)  # the 2 differs from both its neighbours

# %% [markdown]
# ## Two folders, two readers
#
# The formats above are all that separates a rendered room from a benchmark's archive. So Dollhouse can write itself *as* PASCAL-Context and
# *as* NYUD-v2, file for file, and the readers that will read the real archives in chapter 15 read it here.

# %%
import tempfile
from pathlib import Path

from mlore_edu.data.dollhouse_files import write_dollhouse
from mlore_edu.data.loaders import open_dataset

folder = tempfile.TemporaryDirectory()
for layout in ("pascal_context", "nyud_v2"):
    root = Path(folder.name, layout)
    _ = write_dollhouse(root, layout, 128, "full", train=8, val=2, progress=False)
    files = root.rglob("*0000000.*")  # those of the first scene
    print(
        layout,
        *sorted(file.relative_to(root).as_posix() for file in files),
        sep="\n    ",
    )

# %% [markdown]
# On one side six files hold an image and five labels: boundaries have no file of their own, and `LabelMap` is there to find them and to say which
# normals count. On the other side five files hold an image and four labels. Both readers hand out the same thing: a dictionary with
# the image, one tensor per task, and `meta`, which names the scene ({numref}`fig-01-layouts`).


# %% tags=["hide-input"]
def show_samples(samples, classes=()):
    """Draw a row per sample, a column per task; a task that a sample lacks leaves a gap."""
    known = ("image", *me.DOLLHOUSE.names)
    names = [name for name in known if any(name in sample for sample in samples)]
    size = (7.5, len(samples) * 7.5 / len(names) + 0.25)
    _, axes = plt.subplots(len(samples), len(names), figsize=size, squeeze=False)
    for i, sample in enumerate(samples):
        for axis, name in zip(axes[i], names, strict=True):
            title = plots.TITLES[name].split()[-1].capitalize() if i == 0 else ""
            axis.set_title(title)
            axis.set_axis_off()
            if name in sample:
                axis.set_axis_on()
                put(
                    axis,
                    to_rgb(name, sample[name], classes[i] if classes else None),
                    title,
                )


# %% mystnb={"figure": {"name": "fig-01-layouts", "caption": "One scene read back from a PASCAL-Context folder (top) and from an NYUD-v2 folder (bottom), with each data set's own classes. White pixels are ignored. PASCAL VOC knows few of the things in a room, so much is background, and normals are ignored on plants."}, "image": {"alt": "Two rows of pictures of one room: image, classes, and the tasks of each data set. In the upper row most of the class map is background; the lower row has depth instead of parts and saliency."}}
layouts = ("pascal_context", "nyud_v2")
pascal, nyud = (
    open_dataset(name, Path(folder.name, name), "train") for name in layouts
)
plants = [
    (sample["semseg"] == 16).sum().item() for sample in pascal
]  # potted plants
people = [(sample["human_parts"] % 255 > 0).sum().item() for sample in pascal]
shown = int(np.argmax(np.minimum(plants, people)))  # the scene with most of both
show_samples([pascal[shown], nyud[shown]], [21, 40])

# %% [markdown]
# What came back is what went in, except where the format says otherwise: floats and PNG survive exactly, the JPEG image does not, and normals
# are off by their 0.4° at most.

# %%
exact, read = me.scene(int(pascal.ids[shown]), 128), nyud[shown]
assert np.array_equal(read["depth"][0], exact.depth)
assert np.array_equal(read["image"].permute(1, 2, 0), exact.image)  # (H, W, 3)
assert not np.array_equal(pascal[shown]["image"].permute(1, 2, 0), exact.image)
exact_normals = np.moveaxis(exact.normals, -1, 0)  # (3, H, W)
assert angle(read["normals"].numpy(), exact_normals).max() < 0.4  # degrees
folder.cleanup()

# %% [markdown]
# ## When the picture moves, the labels move too
#
# Training flips, zooms and crops images at random so that a network sees more than the few thousand that exist. The labels have to follow,
# and for two of the six it is not enough to move their pixels.
#
# **A mirror turns normals.** A surface that faced right faces left afterwards, so $n_x$ changes its sign. The slope of the mirrored depth map
# tells which version is true ({numref}`fig-01-flip`).

# %%
from torchvision.transforms.v2 import functional as F

from mlore_edu.data.dollhouse_files import to_sample

sample = to_sample(room, "room")  # tensors with types: Image, ClassMap, Normals …
del sample["meta"]  # where the scene came from: nothing to transform
mirrored = {name: F.horizontal_flip(value) for name, value in sample.items()}

only_moved = labelled[:, :, ::-1]
turned = mirrored["normals"].numpy()
truth = normals_from_depth(mirrored["depth"][0].numpy(), room.meta["focal"])
still_flat = inside[:, ::-1]
assert np.median(angle(turned, truth)[still_flat]) < 0.1  # degrees

# %% mystnb={"figure": {"name": "fig-01-flip", "caption": "A mirrored room. Moving the pixels of the normals is not enough: their x must change its sign. The heat map shows how wrong the label would be, in degrees; only surfaces that face neither left nor right escape."}, "image": {"alt": "Four pictures: the mirrored image, wrong normals, right normals with other colours on the side walls, and a heat map that is bright on everything that faces left or right."}}
show_row(
    {
        "Mirrored image": to_rgb("image", mirrored["image"]),
        "Wrong: pixels moved": to_rgb("normals", only_moved),
        "Right: x negated too": to_rgb("normals", turned),
        "Error of the wrong [°]": angle(only_moved, turned),
    }
)

# %% [markdown]
# **A zoom changes depth.** Enlarge an image twofold and a person is twice as many pixels tall. A network that knows one camera must
# conclude that the person stands at half the distance, or is a giant. So the field divides depth by the zoom. The
# person's height in metres, from the highest to the lowest pixel, says who is right ({numref}`fig-01-zoom`).


# %%
def person_height(depth, parts):
    """Vertical extent in metres of all body parts, seen with the usual camera."""
    y = (depth * camera_rays(depth.shape, room.meta["focal"]))[1]  # (H, W)
    return np.ptp(y[parts > 0])


zoomed = {name: F.resize(value, [512, 512]) for name, value in sample.items()}
parts, divided = zoomed["human_parts"].numpy(), zoomed["depth"][0].numpy()
before = person_height(room.depth, room.human_parts)
for rule, metres in (("is kept", 2 * divided), ("is divided", divided)):
    growth = person_height(metres, parts) / before
    print(f"where depth {rule:10} people grow by a factor of {growth:.1f}")

# %% mystnb={"figure": {"name": "fig-01-zoom", "caption": "The person in the room, enlarged twice. With the depth of the original the label claims a giant; divided by two it says that everything came nearer."}, "image": {"alt": "Four pictures: the room, an enlarged window of it with a person, the enlarged depth map in unchanged colours, and the same in brighter colours because everything is nearer."}}
top, left = (int(np.clip(2 * at.mean() - 128, 0, 256)) for at in (rows, columns))
middle = np.s_[top : top + 256, left : left + 256]  # around the people
show_row(
    {
        "Image": room.image,
        "Enlarged": to_rgb("image", zoomed["image"])[middle],
        "Wrong: old metres": to_rgb("depth", 2 * divided[middle]),
        "Right: divided by 2": to_rgb("depth", divided[middle]),
    }
)

# %% [markdown]
# This is a convention and not the whole truth. It keeps heights and widths but squeezes the room along the line of sight, so after a zoom the
# normals are no longer the slope of the depth. Only a longer lens, undivided depth seen with twice the focal length, leaves the two
# consistent. We measure the angle between the zoomed normals and the slope of the zoomed depth, away from boundaries.

# %%
flat = np.kron(inside, np.ones((2, 2), bool))  # (2 H, 2 W)
moved = zoomed["normals"].numpy()  # (3, 2 H, 2 W)
usual = normals_from_depth(divided, room.meta["focal"])
longer_lens = normals_from_depth(2 * divided, 2 * room.meta["focal"])
for title, slope in (
    ("depth divided, usual camera", usual),
    ("depth kept, longer lens", longer_lens),
):
    print(f"{title:28} {np.median(angle(slope, moved)[flat]):2.0f}°")

# %% [markdown]
# The field accepts this, and so does this book, in order to stay comparable.
#
# How do the functions `horizontal_flip` and `resize` know what to do? By the type of the tensor: `mlore_edu/data/tensors.py` defines
# `ClassMap`, `Normals` and `Depth`, and tells torchvision how each behaves. Labels are always resized by their nearest neighbour, because the
# mean of two classes is not a class.
#
# ### Pixels that do not count
#
# The field's recipe chains the steps: zoom by a random factor between 0.5 and 2, crop so that no class covers more than three quarters, flip
# half of the time, change the colours, and pad to the training size. Padding brings pixels that nobody labelled. `DollhouseScenes` renders
# scenes in memory, and its `draw` transforms one of them; all chance comes from the generator it is given. Out of sixty draws we show
# the one with the largest people, the one with the widest border, and one without people ({numref}`fig-01-augment`).

# %% mystnb={"figure": {"name": "fig-01-augment", "caption": "Three draws of the training transform. White is ignored: the padding around a zoomed-out image, and the whole map of parts where a crop shows nobody."}, "image": {"alt": "Three rows, each an image with its six labels. In the first, people fill much of the picture. The second is small and surrounded by a border, grey-brown in the image and white in the labels. The third shows a room without people, and its parts are white."}}
import torch

from mlore_edu.data.dollhouse_files import DollhouseScenes
from mlore_edu.data.transforms import denormalise, train_transform

dataset = DollhouseScenes(20, 128, "full", transform=train_transform(128))
chances = [torch.Generator().manual_seed(number) for number in range(60)]
draws = [dataset.draw(number % 20, chance) for number, chance in enumerate(chances)]
people = [(draw["human_parts"] % 255 > 0).float().mean().item() for draw in draws]
padding = [(draw["depth"] == 0).float().mean().item() for draw in draws]
shown = [np.argmax(people), np.argmax(padding), np.argmin(people)]
show_samples([{**draws[i], "image": denormalise(draws[i]["image"])} for i in shown])

# %% [markdown]
# Every label fills the border with its own "does not count": 255 for classes, parts, saliency and boundaries, 0 metres, the zero vector.

# %%
assert (draws[shown[2]]["human_parts"] == 255).all()
for draw in draws:
    outside = np.ones((128, 128), bool)
    (top, left), (tall, wide) = draw["meta"]["offset"], draw["meta"]["size"]
    outside[top : top + tall, left : left + wide] = False
    for task in me.DOLLHOUSE:
        assert (draw[task.name].numpy()[..., outside] == task.ignore).all()

# %% [markdown]
# ## Look at twenty scenes
#
# Nothing replaces looking at the data. Here are the first twenty scenes of full difficulty ({numref}`fig-01-twenty`), and then their classes ({numref}`fig-01-twenty-labels`).

# %% mystnb={"figure": {"name": "fig-01-twenty", "caption": "The first twenty Dollhouse scenes."}, "image": {"alt": "A contact sheet of twenty rendered rooms with furniture, people, plants and balls in varying colours, lights and views."}}
scenes = [me.scene(seed, 128) for seed in range(20)]
_ = plots.show_images([scene.image for scene in scenes])

# %% mystnb={"figure": {"name": "fig-01-twenty-labels", "caption": "Their semantic classes."}, "image": {"alt": "The same twenty rooms as coloured class maps; walls and floors cover most of nearly every picture, and small things are rare."}}
maps = np.stack([scene.semseg for scene in scenes])  # (20, 128, 128)
figure = plots.show_images([to_rgb("semseg", label) for label in maps])
plots.class_legend(figure, "semseg", maps, CLASSES)

# %% [markdown]
# While you look, ask what is hard. Which things have a colour of their own, and which only a shape? Where do two things of one class
# touch? Could you tell the depth of a wall without the floor?
#
# ## Three statistics that decide a lot
#
# ### Classes are not equally frequent


# %% tags=["hide-input"]
def show_shares(shares):
    """Draw a bar chart per task: the share of each class, the most frequent on top."""
    _, axes = plt.subplots(1, len(shares), figsize=(7.5, 3.2))
    for axis, (task, values) in zip(axes, shares.items(), strict=True):
        order = np.argsort(values)
        names = np.array(me.DOLLHOUSE[task].class_names)[order]
        colours = palette(task)[order] / 255
        bars = axis.barh(
            names, 100 * values[order], color=colours, edgecolor="grey"
        )
        axis.bar_label(bars, fmt="%.1f", padding=3, fontsize=8)
        axis.set(xlabel="% of the pixels", title=me.DOLLHOUSE[task].title)
        axis.margins(x=0.12)


# %% mystnb={"figure": {"name": "fig-01-frequency", "caption": "Share of the pixels of each class and each part in a hundred scenes."}, "image": {"alt": "Two bar charts. Left: wall and floor cover more than half of all pixels, things such as balls, lamps and pictures about one in a hundred each. Right: background covers nearly everything, each of the six parts less than two in a hundred."}}
many = [me.scene(seed, 64) for seed in range(100)]


def stacked(name):
    return np.stack([getattr(scene, name) for scene in many])  # (100, 64, 64)


share = {}
for task, classes in {"semseg": 15, "human_parts": 7}.items():
    count = np.bincount(stacked(task).ravel(), minlength=classes)
    share[task] = count / count.sum()
show_shares(share)

# %%
assert share["semseg"].max() > 20 * share["semseg"].min()

# %% [markdown]
# Walls have more than twenty times the pixels of the rarest class ({numref}`fig-01-frequency`). Imbalance of this kind is the rule in photographs too. It is why class metrics average over classes and not over pixels (chapter 2), why a random crop is drawn again if one class covers more
# than three quarters of it, and why saliency's loss weighs its two classes by their frequency (chapter 3).
#
# ### Boundaries are thin

# %%
thinness = [
    np.mean([me.scene(seed, side).edge.mean() for seed in range(20)])
    for side in (64, 128, 256)
]  # fmt: skip
print("share of boundary pixels at 64 × 64, 128 × 128 and 256 × 256:")
print(*(f"{share:.0%}" for share in thinness), sep=", ")

# %% [markdown]
# A line is one-dimensional: double the side of an image and its share halves, or nearly. A network trained with a loss that counts every pixel
# alike could be content to answer *no boundary* everywhere. The usual remedy gives the few boundary pixels the weight $w$ and the many others $1 - w$; the
# papers mostly choose $w = 0.95$, which balances the two sides when one pixel in twenty is boundary.
#
# ### What a constant answer scores
#
# How well does a model do that never looks at the image? For each task take a good constant: the most frequent class,
# the mean depth, the mean direction, *boundary everywhere*. (mIoU averages over classes how well two regions overlap; F
# combines how much of an answer is right with how much is found. Chapter 2 explains both, with a tolerance for
# boundaries that is left out here.) Whatever a network scores means something only beside these numbers.

# %%
wall, nobody = share["semseg"].max(), share["human_parts"][0]
salient, boundary = stacked("saliency").mean(), stacked("edge").mean()

scores = {
    "everything is wall": (wall, "mIoU", wall / 15),
    "nobody anywhere": (nobody, "mIoU", nobody / 7),
    "everything is salient": (salient, "F", 1.3 * salient / (0.3 * salient + 1)),
    "boundary everywhere": (boundary, "F", 2 * boundary / (boundary + 1)),
}
for answer, (right, metric, score) in scores.items():
    print(
        f"{answer:22} right on {right:4.0%} of the pixels, {metric:4} {score:4.0%}"
    )

# %%
all_normals = stacked("normals").reshape(-1, 3).T  # (3, 100·64·64)
direction = all_normals.mean(1, keepdims=True)  # (3, 1)
direction /= np.linalg.norm(direction)

off = angle(all_normals, direction).mean()
print(f"{'the mean direction':22} off by {off:.0f}° on average")
print(
    f"{'the mean depth':22} off by {stacked('depth').std():.1f} m, root mean square"
)

# %% [markdown]
# Human parts say it best: *nobody anywhere* is right on more than nine pixels of ten, and still scores low, because the metric asks about
# every class alike.
#
# ## Why answer all at once
#
# Six networks could give six answers. But the answers are not independent: a floor has one normal, heights follow from depth, parts lie in
# people. Most of all, boundaries sit where something else changes. We measure it: at which share of boundary pixels does the class change,
# does depth step by more than a tenth, or does the normal turn by more than 20°, within one pixel? And how often does that happen elsewhere?


# %%
def what_changes(scene):
    """For every pixel, whether each label changes among its 3 × 3 neighbours."""
    n = np.pad(scene.normals, ((1, 1), (1, 1), (0, 0)), "edge")  # (H + 2, W + 2, 3)
    around = [np.roll(n, (i, j), (0, 1)) for i in (-1, 0, 1) for j in (-1, 0, 1)]
    cosine = np.min([(n * other).sum(-1) for other in around], axis=0)
    cosine = cosine[1:-1, 1:-1]  # (H, W)
    far, near = maximum_filter(scene.depth, 3), minimum_filter(scene.depth, 3)
    changes = {
        "class": maximum_filter(scene.semseg, 3) != minimum_filter(scene.semseg, 3),
        "depth": far > 1.1 * near,
        "normal": cosine < np.cos(np.radians(20)),
    }
    return {**changes, "any of them": np.any(list(changes.values()), axis=0)}


# %% mystnb={"figure": {"name": "fig-01-together", "caption": "How often another label changes at a boundary pixel, and how often elsewhere, in twenty scenes of 128 × 128 pixels."}, "image": {"alt": "A bar chart with two bars for each of class, depth, normal, and any of them: tall bars at boundaries, short ones elsewhere."}}
every = [what_changes(scene) for scene in scenes]
changed = {name: np.stack([one[name] for one in every]) for name in every[0]}
on_edge = np.stack([scene.edge for scene in scenes]) == 1
away = np.stack([maximum_filter(scene.edge, 5) for scene in scenes]) == 0

figure, axis = plt.subplots(figsize=(6, 2.6))
for shift, where, name in (
    (-0.2, on_edge, "at boundaries"),
    (0.2, away, "elsewhere"),
):
    shares = [100 * change[where].mean() for change in changed.values()]
    axis.bar(np.arange(4) + shift, shares, 0.4, label=name)
axis.set(xticks=range(4), xticklabels=changed, ylabel="% of the pixels")
axis.margins(y=0.15)
_ = axis.legend(loc="upper right", ncols=2, bbox_to_anchor=(1, 1.15))

# %%
explained = changed["any of them"]
assert explained[on_edge].mean() > 0.95
assert explained[away].mean() < 0.15

# %% [markdown]
# More than 95 of 100 boundary pixels are announced by another answer ({numref}`fig-01-together`), and elsewhere little changes,
# mostly normals: a bed turns a corner, an arm is round. A network that already computes depth, normals and classes holds most of what it needs for boundaries. How a *decoder* should let its tasks use each other's knowledge
# without disturbing one another is the question of every paper in this book.
#
# ## Exercises
#
# Each exercise has a check that prints *correct*, or what is wrong and a hint.

# %%
from mlore_edu.exercises import ch01

# %% [markdown]
# ```{exercise} A mirror for normals
# :label: ex-01-flip
# Write `flip_normals(normals)` for an array of shape (3, H, W): the map as it must be after the image was mirrored left and right. Leave the
# input as it was.
# ```


# %%
def flip_normals(normals):
    return ...


_ = ch01.check_flip(flip_normals)

# %% [markdown]
# ```{solution-start} ex-01-flip
# :class: dropdown
# ```


# %% jupyter={"source_hidden": true}
def flip_normals(normals):
    return normals[:, :, ::-1] * np.array([-1, 1, 1])[:, None, None]  # (3, H, W)


_ = ch01.check_flip(flip_normals)

# %% [markdown]
# ```{solution-end}
# ```
#
# ```{exercise} NYUD's classes
# :label: ex-01-nyud
# Write `decode_semseg(stored)`: from NYUD-v2's stored values (H, W), uint8, 0 = unlabelled and 1 to 40 = classes, to class ids from 0 with
# 255 = ignored. Can you do it with one subtraction?
# ```


# %%
def decode_semseg(stored):
    return ...


_ = ch01.check_decode_semseg(decode_semseg)

# %% [markdown]
# ```{solution-start} ex-01-nyud
# :class: dropdown
# ```


# %% jupyter={"source_hidden": true}
def decode_semseg(stored):
    return stored - np.uint8(1)  # bytes wrap around: 0 − 1 is 255


_ = ch01.check_decode_semseg(decode_semseg)

# %% [markdown]
# ```{solution-end}
# ```
#
# ```{exercise} Boundaries without a blind spot
# :label: ex-01-boundaries
# Write `boundaries(label_map)`: a Boolean map (H, W) that is true wherever a pixel differs from at least one of the pixels above, below, left
# or right of it. Unlike the Laplacian it must not miss the middle of 1, 2, 3. Label maps may be unsigned.
# ```


# %%
def boundaries(label_map):
    return ...


_ = ch01.check_boundaries(boundaries)

# %% [markdown]
# ```{solution-start} ex-01-boundaries
# :class: dropdown
# ```


# %% jupyter={"source_hidden": true}
def boundaries(label_map):
    marked = np.zeros(label_map.shape, bool)
    down = label_map[1:] != label_map[:-1]  # (H - 1, W)
    right = label_map[:, 1:] != label_map[:, :-1]  # (H, W - 1)
    marked[1:] |= down
    marked[:-1] |= down
    marked[:, 1:] |= right
    marked[:, :-1] |= right
    return marked


_ = ch01.check_boundaries(boundaries)

# %% [markdown]
# ```{solution-end}
# ```
#
# ```{exercise} Depth under a zoom
# :label: ex-01-zoom
# Write `zoom_depth(depth, zoom)`: a depth map (H, W) in metres, enlarged by the whole number `zoom` with the nearest
# neighbour, its metres changed by the field's rule. 0 stays invalid.
# ```


# %%
def zoom_depth(depth, zoom):
    return ...


_ = ch01.check_zoom(zoom_depth)

# %% [markdown]
# ```{solution-start} ex-01-zoom
# :class: dropdown
# ```


# %% jupyter={"source_hidden": true}
def zoom_depth(depth, zoom):
    larger = depth.repeat(zoom, axis=0).repeat(zoom, axis=1)  # (zoom · H, zoom · W)
    return larger / zoom


_ = ch01.check_zoom(zoom_depth)

# %% [markdown]
# ```{solution-end}
# ```
#
# ```{exercise} Merging body parts
# :label: ex-01-parts
# Write `merge_parts(masks, shape)`: `masks` maps PASCAL-Part's names to arrays of the given shape (H, W) that are not zero on the part. Return
# the map of six parts, and the ignored map if there is nobody. `labels.MERGED_PART` knows the number of each name.
# ```


# %%
def merge_parts(masks, shape):
    return ...


_ = ch01.check_merge_parts(merge_parts)

# %% [markdown]
# ```{solution-start} ex-01-parts
# :class: dropdown
# ```


# %% jupyter={"source_hidden": true}
def merge_parts(masks, shape):
    merged = np.zeros(shape, np.uint8)
    for name, mask in masks.items():
        merged[mask != 0] = labels.MERGED_PART[name]
    return merged if merged.any() else np.full(shape, 255, np.uint8)


_ = ch01.check_merge_parts(merge_parts)

# %% [markdown]
# ```{solution-end}
# ```
#
# ## Takeaways
#
# - A dense task answers one question at every pixel; a task set fixes the questions, the channels, and the value that means *does not count*.
# - Labels of one scene constrain each other: normals are the slope of depth, boundaries sit where classes, depth or normals change. That is the
#   reason for multi-task learning, and a test for every data pipeline.
# - Files lose things. Class maps need a lossless format, NYUD's classes a shift, 8-bit normals lose up to 0.39° and their zero, eight bits of
#   depth lose the slope.
# - A flip negates the normals' $x$ and a zoom divides depth; every transform must know the type of label it moves.
# - Saliency and normals of PASCAL-Context are other networks' opinions.
# - Classes are unequally frequent and boundaries are thin, so a constant can look good. Know its score.
#
# You can now read and write every label of the two benchmarks, and tell a right one from a wrong one. Next: how to judge an answer, in
# [chapter 2, Measuring](02_measuring.ipynb).
