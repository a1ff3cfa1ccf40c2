"""The released MLoRE from its description alone: a state dict of random numbers, and a module-by-module reading of it.

Nothing here knows the library. Names, shapes and the order of operations are those of the description "what the
authors' released code does"; tasks, experts and images go through plain loops, one at a time.
"""

import torch
import torch.nn.functional as F

PASCAL = {"semseg": 21, "human_parts": 7, "sal": 2, "edge": 1, "normals": 3}
NYUD = {"semseg": 40, "normals": 3, "edge": 1, "depth": 1}
OUR_NAMES = {"sal": "saliency"}
WIDTHS = {384: (12, 6), 768: (12, 12), 1024: (24, 16)}  # width of the ViT: blocks, attention heads

SMALL_PASCAL = {"width": 384, "channels": 20, "ranks": (2, 3, 4, 5), "task_rank": 3, "tokens": 16, "tasks": PASCAL}
SMALL_NYUD = {"width": 384, "channels": 24, "ranks": (2, 4, 6), "task_rank": 2, "tokens": 63, "tasks": NYUD}

LARGE_PASCAL = {"width": 1024, "channels": 452, "ranks": range(16, 129, 8), "task_rank": 72, "tokens": 1024}
BASE_PASCAL = {"width": 768, "channels": 640, "ranks": range(16, 129, 8), "task_rank": 64, "tokens": 1024}
LARGE_NYUD = {"width": 1024, "channels": 768, "ranks": range(16, 241, 16), "task_rank": 16, "tokens": 1008}
FULL_SIZE = {
    "ViT-L PASCAL": {**LARGE_PASCAL, "tasks": PASCAL},
    "ViT-B PASCAL": {**BASE_PASCAL, "tasks": PASCAL},
    "ViT-L NYUD": {**LARGE_NYUD, "tasks": NYUD},
}


def shapes(*, width, channels, ranks, task_rank, tokens, tasks):
    """Every key of a checkpoint and its shape; BatchNorms by their prefix, with the shape of their weight."""
    depth, hidden, outputs = WIDTHS[width][0], channels // 4, 2 * len(ranks) + 1
    linear, norms = {}, {}
    direct = {"backbone.pos_embed": (1, 1 + tokens, width)}
    linear["backbone.patch_embed.proj"] = (width, 3, 16, 16)
    for i in range(depth):
        block = f"backbone.blocks.{i}."
        linear |= {f"{block}attn.qkv": (3 * width, width), f"{block}attn.proj": (width, width)}
        linear |= {f"{block}mlp.fc1": (4 * width, width), f"{block}mlp.fc2": (width, 4 * width)}
        for name in ("norm1", "norm2"):
            direct |= {f"{block}{name}.weight": (width,), f"{block}{name}.bias": (width,)}
    direct |= {"backbone.norm.weight": (width,), "backbone.norm.bias": (width,)}
    for s in range(4):
        linear[f"backbone.fea_fuse.{s}"] = (channels, width, 1, 1)
        for module in (f"backbone.MLoRE_1.{s}.", f"backbone.MLoRE_2.{s}."):
            for n, rank in enumerate(ranks):
                linear[f"{module}lora_list_1.{n}.W"] = (rank, channels, 3, 3)
                linear[f"{module}lora_list_1.{n}.M"] = (channels, rank, 1, 1)
            linear[f"{module}share_conv"] = (channels, channels, 3, 3)
            for t in tasks:
                linear[f"{module}conv1.{t}"] = linear[f"{module}conv3.{t}"] = (channels, channels, 1, 1)
                linear[f"{module}conv2.{t}.W"] = (task_rank, channels, 3, 3)
                linear[f"{module}conv2.{t}.M"] = (channels, task_rank, 1, 1)
                norms[f"{module}bn.{t}"] = norms[f"{module}bn_all.{t}"] = (channels,)
                router = f"{module}router_1.{t}."
                linear[f"{router}0.conv1"] = linear[f"{router}0.conv2"] = (hidden, channels, 1, 1)
                linear[f"{router}0.conv3"] = (hidden, hidden, 1, 1)
                linear[f"{router}0.convsp"] = (1, tokens)
                direct |= {f"{router}0.ln.weight": (hidden,), f"{router}0.ln.bias": (hidden,)}
                direct |= {f"{router}0.ln_sp.weight": (channels,), f"{router}0.ln_sp.bias": (channels,)}
                linear[f"{router}1"] = (outputs, 2 * hidden, 1, 1)
    for t, predicted in tasks.items():
        linear[f"backbone.task_mask.{t}.0"] = (channels, 4 * channels, 1, 1)
        norms[f"backbone.task_mask.{t}.1"] = (channels,)
        linear[f"backbone.task_mask.{t}.3"] = (4, channels, 3, 3)
        linear[f"heads.{t}.mt_proj.0"] = (channels, channels, 3, 3)
        norms[f"heads.{t}.mt_proj.1"] = (channels,)
        linear[f"heads.{t}.linear_pred"] = (predicted, channels, 1, 1)
    for name, shape in linear.items():
        direct |= {f"{name}.weight": shape, f"{name}.bias": shape[:1]}
    for name, shape in norms.items():
        direct |= dict.fromkeys([f"{name}.{kind}" for kind in ("weight", "bias", "running_mean", "running_var")], shape)
        direct[f"{name}.num_batches_tracked"] = ()
    return direct


def unused(*, channels, tasks, **_):
    """Shapes that only the released ViT-B class stores: names as described, sizes for the sake of the test."""
    names = [*(f"backbone.q_fuse.{t}" for t in tasks), "backbone.classify_route_1", "backbone.classify_route_2"]
    names += [f"aux_heads.{t}.linear_pred" for t in tasks]
    return {f"{name}.weight": (channels, channels, 1, 1) for name in names}


def make_state(seed=0, *, dtype=torch.float32, device="cpu", **sizes):
    """A state dict of random numbers of such sizes that signals neither vanish nor explode."""
    generator = torch.Generator(device if device != "meta" else "cpu").manual_seed(seed)
    state = {}
    for key, shape in shapes(**sizes).items():
        if key.endswith("num_batches_tracked"):
            state[key] = torch.tensor(7, device=device)
        elif device == "meta":
            state[key] = torch.empty(shape, device="meta", dtype=dtype)
        else:
            fan_in = max(1, torch.Size(shape[1:]).numel())
            noise = torch.randn(shape, generator=generator)
            scale = 0.3 if len(shape) == 1 or "pos_embed" in key else fan_in**-0.5
            centre = 1.0 if len(shape) == 1 and key.endswith(("weight", "running_var")) else 0.0
            value = centre + scale * noise
            state[key] = (value.abs() + 0.1 if key.endswith("running_var") else value).to(dtype)
    return state


class Reading:
    """The released model read line by line; ``predict(images)`` gives raw predictions at the images' size."""

    def __init__(self, state, *, k, softmax_first, tasks, ranks, grid, width, **_):
        self.state, self.k, self.softmax_first, self.grid, self.width = state, k, softmax_first, grid, width
        self.tasks, self.experts = tuple(tasks), len(ranks)

    def conv(self, name, x):
        weight = self.state[f"{name}.weight"]
        return F.conv2d(x, weight, self.state[f"{name}.bias"], padding=weight.shape[-1] // 2)

    def linear(self, name, x):
        return x @ self.state[f"{name}.weight"].T + self.state[f"{name}.bias"]

    def layer_norm(self, name, x, eps):
        """Over the last dimension."""
        centred = x - x.mean(-1, keepdim=True)
        normalised = centred / (centred.square().mean(-1, keepdim=True) + eps).sqrt()
        return normalised * self.state[f"{name}.weight"] + self.state[f"{name}.bias"]

    def batch_norm(self, name, x):
        mean, variance = self.state[f"{name}.running_mean"], self.state[f"{name}.running_var"]
        weight, bias = self.state[f"{name}.weight"], self.state[f"{name}.bias"]
        scale = weight / (variance + 1e-5).sqrt()
        return (x - mean[:, None, None]) * scale[:, None, None] + bias[:, None, None]

    def vit(self, images):
        depth, heads = WIDTHS[self.width]
        patches = F.conv2d(
            images, self.state["backbone.patch_embed.proj.weight"], self.state["backbone.patch_embed.proj.bias"], 16
        )
        x = patches.flatten(2).transpose(1, 2) + self.state["backbone.pos_embed"][:, 1:]  # row 0 is unused
        maps = []
        for i in range(depth):
            block = f"backbone.blocks.{i}."
            qkv = self.linear(f"{block}attn.qkv", self.layer_norm(f"{block}norm1", x, 1e-6))
            q, k, v = (part.unflatten(-1, (heads, -1)).transpose(1, 2) for part in qkv.chunk(3, dim=-1))
            attended = (q @ k.transpose(-1, -2) * q.shape[-1] ** -0.5).softmax(-1) @ v
            x = x + self.linear(f"{block}attn.proj", attended.transpose(1, 2).flatten(2))
            hidden = F.gelu(self.linear(f"{block}mlp.fc1", self.layer_norm(f"{block}norm2", x, 1e-6)))
            x = x + self.linear(f"{block}mlp.fc2", hidden)
            if i + 1 in (depth // 4, depth // 2, 3 * depth // 4):
                maps.append(x)
        maps.append(self.layer_norm("backbone.norm", x, 1e-6))
        return [tokens.transpose(1, 2).unflatten(2, self.grid) for tokens in maps]

    def route(self, name, x):
        """Gates and task scale of one image's features ``(1, C, H, W)``, from the 2N + 1 outputs."""
        basic = self.conv(f"{name}.0.conv1", x).permute(0, 2, 3, 1)
        basic = F.gelu(self.layer_norm(f"{name}.0.ln", basic, 1e-5)).permute(0, 3, 1, 2)
        basic = self.conv(f"{name}.0.conv3", basic).mean((2, 3), keepdim=True)
        position = self.linear(f"{name}.0.convsp", x.flatten(2)).squeeze(-1)  # over HW: (1, C)
        position = F.gelu(self.layer_norm(f"{name}.0.ln_sp", position, 1e-5))[..., None, None]
        position = self.conv(f"{name}.0.conv2", position)
        outputs = self.conv(f"{name}.1", torch.cat([basic, position], 1)).flatten()
        logits, scale = outputs[: self.experts].tolist(), outputs[-1]
        dropped = sorted(range(self.experts), key=lambda n: logits[n])[: self.experts - self.k]
        kept = [n for n in range(self.experts) if n not in dropped]
        if self.softmax_first:
            gates = outputs[: self.experts].softmax(0)
            return {n: gates[n] for n in kept}, scale
        return dict(zip(kept, outputs[kept].softmax(0), strict=True)), scale

    def module(self, name, task, x):
        x = self.conv(f"{name}.conv1.{task}", x)
        mixed = []
        for image in x.split(1):
            gates, scale = self.route(f"{name}.router_1.{task}", image)
            experts = 0
            for n, gate in gates.items():
                experts = experts + gate * self.conv(
                    f"{name}.lora_list_1.{n}.M", self.conv(f"{name}.lora_list_1.{n}.W", image)
                )
            specific = self.conv(f"{name}.conv2.{task}.M", self.conv(f"{name}.conv2.{task}.W", image))
            generic = self.conv(f"{name}.share_conv", image)
            mixed.append(self.batch_norm(f"{name}.bn_all.{task}", experts) + scale * specific + generic)
        return self.conv(f"{name}.conv3.{task}", F.gelu(self.batch_norm(f"{name}.bn.{task}", torch.cat(mixed))))

    def predict(self, images):
        maps = [self.conv(f"backbone.fea_fuse.{s}", feature_map) for s, feature_map in enumerate(self.vit(images))]
        predictions = {}
        for task in self.tasks:
            scales = []
            for s, x in enumerate(maps):
                first = self.module(f"backbone.MLoRE_1.{s}", task, x)
                scales.append(self.module(f"backbone.MLoRE_2.{s}", task, first))
            mask = f"backbone.task_mask.{task}"
            hidden = F.gelu(self.batch_norm(f"{mask}.1", self.conv(f"{mask}.0", torch.cat(scales, 1))))
            weights = self.conv(f"{mask}.3", hidden).softmax(1)
            feature = sum(weights[:, s : s + 1] * scales[s] for s in range(4))
            feature = F.interpolate(feature, scale_factor=4, mode="bilinear", align_corners=False)
            head = f"heads.{task}"
            hidden = F.gelu(self.batch_norm(f"{head}.mt_proj.1", self.conv(f"{head}.mt_proj.0", feature)))
            raw = self.conv(f"{head}.linear_pred", hidden)
            size = images.shape[-2:]
            predictions[OUR_NAMES.get(task, task)] = F.interpolate(raw, size, mode="bilinear", align_corners=False)
        return predictions
