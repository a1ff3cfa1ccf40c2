"""Pages of the library, made from its docstrings: Sphinx's autodoc finds them, its napoleon reads NumPy's style."""

from sphinx.ext.napoleon import Config, NumpyDocstring

import mlore_edu

STYLE = Config(
    napoleon_use_param=False,  # "queries, keys" stay one item with one description
    napoleon_use_rtype=False,
    napoleon_custom_sections=[("Attributes", "params_style")],  # a named tuple's too
)


def read_docstring(app, what, name, obj, options, lines):
    """Turn a docstring in NumPy's style into reStructuredText, in place."""
    # napoleon would take what stands before a constant's first colon for its type
    kind = "object" if what in {"attribute", "data", "property"} else what
    lines[:] = NumpyDocstring(lines, STYLE, app, kind, name, obj, options).lines()


def skip_member(app, what, name, obj, skip, options):
    """Leave out a named tuple's fields, which its own docstring describes."""
    return True if type(obj).__name__ == "_tuplegetter" else None


def find_home(app, env, node, content):
    """Link the library's public names, ``UserError`` or ``mlore_edu.fuse``, to the modules that they come from."""
    public = node.get("reftarget", "").removeprefix("mlore_edu.")
    if node.get("refdomain") != "py" or public not in mlore_edu.__all__:
        return None
    item = getattr(mlore_edu, public)
    home = f"{item.__module__}.{public}"
    python = env.get_domain("py")
    if home not in python.objects:
        return None
    return python.resolve_xref(
        env, node["refdoc"], app.builder, "obj", home, node, content
    )


def setup(app):
    """Register all of it with Sphinx."""
    app.setup_extension("sphinx.ext.autodoc")
    app.connect("autodoc-process-docstring", read_docstring)
    app.connect("autodoc-skip-member", skip_member)
    app.connect("missing-reference", find_home)
    return {"parallel_read_safe": True}
