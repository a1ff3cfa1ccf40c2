"""Repairs to what other extensions write: ids that occur twice on a page, and scripts for a service the book never asks."""

from docutils import nodes


def make_ids_unique(app, doctree, docname):
    """Name the body of an exercise or solution after its box; sphinx-exercise names all of them alike."""
    for body in doctree.findall(nodes.section):
        if body["ids"] in (["exercise-content"], ["solution-content"]):
            body["ids"] = [f"{box}-content" for box in body.parent["ids"][:1]]


def leave_out_live_code(app, page, template, context, doctree):
    """Drop Thebe's scripts: they are declared twice, which is an error, and would fetch from the internet."""
    context["script_files"] = [
        script
        for script in context["script_files"]
        if "thebe" not in f"{script.filename} {script.attributes}".lower()
    ]


def setup(app):
    """Register both with Sphinx."""
    app.connect("doctree-resolved", make_ids_unique)
    app.connect("html-page-context", leave_out_live_code, priority=900)
    return {"parallel_read_safe": True}
