"""What a NAME means to the commands that change one thing: a source, or one of its pipelines."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from dwcli.project import Pipeline, Project, Source


def named(project: Project, name: str) -> tuple[Source, list[Pipeline], bool]:
    """(source, its pipelines that are meant, whether the whole source is meant).

    A source's name comes before a pipeline's: `dw run` may take either, since both load the same rows, but
    the file of a source is not the entry of a pipeline. Raises NameUnknown.
    """
    from dwcli.project import pipelines_of, select

    if name in project.sources:
        source = project.sources[name]
        return source, [p for p in pipelines_of(project) if p.source.name == name], True
    pipeline = select(project, [name])[0]
    return pipeline.source, [pipeline], False
