"""Pages of the library, made from its docstrings: Sphinx's autodoc finds them, its napoleon reads NumPy's style."""

import re

from sphinx.ext.napoleon import Config, NumpyDocstring

STYLE = Config(
    napoleon_use_param=False,  # "queries, keys" stay one item with one description
    napoleon_use_rtype=False,
    napoleon_attr_annotations=False,  # types stand in the signature
    napoleon_custom_sections=[
        ("Attributes", "params_style")
    ],  # a named tuple's too
)


def read_docstring(app, what, name, obj, options, lines):
    """Turn a docstring in NumPy's style into reStructuredText, in place."""
    kind, text = what, lines
    if what in {"attribute", "data", "property"}:
        kind = "object"  # or napoleon takes what stands before the first colon for its type
        text = [re.sub(r"(?<!`)(--[a-z][\w-]*)", r"``\1``", line) for line in lines]
    lines[:] = NumpyDocstring(text, STYLE, app, kind, name, obj, options).lines()


def skip_member(app, what, name, obj, skip, options):
    """Leave out a named tuple's fields, which its own docstring describes."""
    return True if type(obj).__name__ == "_tuplegetter" else None


def find_home(app, env, node, content):
    """Link a name without its module, ``UserError`` or ``mlore_edu.fuse``, where the library has it once."""
    target = node.get("reftarget", "")
    name = target.removeprefix("mlore_edu.")
    if node.get("refdomain") != "py" or not name.isidentifier():
        return None
    python = env.get_domain("py")
    homes = [
        home
        for home, entry in python.objects.items()
        if home.endswith(f".{name}") and entry.objtype != "module"
    ]
    if len(homes) != 1:
        return None
    return python.resolve_xref(
        env, node["refdoc"], app.builder, "obj", homes[0], node, content
    )


def setup(app):
    """Register all of it with Sphinx."""
    app.setup_extension("sphinx.ext.autodoc")
    app.connect("autodoc-process-docstring", read_docstring)
    app.connect("autodoc-skip-member", skip_member)
    app.connect("missing-reference", find_home)
    return {"parallel_read_safe": True}
