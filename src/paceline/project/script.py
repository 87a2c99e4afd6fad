"""Script: a template in the order a simulation follows it, and one request that is following it."""

from paceline.project.app import Asked, Template
from paceline.project.draws import Service


class Script:
    """What each work releases, and how much it waits for."""

    __slots__ = ("awaited", "first", "late", "template", "then", "waits", "works")

    def __init__(self, template: Template) -> None:
        works = template.works
        self.template = template
        self.works = works
        self.then: list[list[int]] = [[] for _ in works]
        self.waits = [len(w.after) + w.after_answer for w in works]
        for i, work in enumerate(works):
            for j in work.after:
                self.then[j].append(i)
        self.first = [i for i, n in enumerate(self.waits) if n == 0]
        self.late = [i for i, w in enumerate(works) if w.after_answer]
        self.awaited = sum(w.awaited for w in works)


class Live:
    """One request on its way. `over`: its user is free again; `ended`: the application is done with it."""

    __slots__ = ("asked", "ended", "holds_worker", "key", "left", "over", "script", "start_s", "user", "waits")

    script: Script  # set when its work begins

    def __init__(self, asked: Asked, key: str, user: int, start_s: float) -> None:
        self.asked = asked
        self.key = key
        self.user = user  # -1 in open loads
        self.start_s = start_s
        self.over = False
        self.ended = False
        self.holds_worker = False
        self.left = 0  # awaited works that are not done
        self.waits: list[int] = []


class Job:
    """One work of one request on its way."""

    __slots__ = ("attempt", "flight", "index", "live", "others", "service", "work")

    service: Service  # set when it asks its model

    def __init__(self, live: Live, index: int) -> None:
        self.live = live
        self.index = index
        self.work = live.script.works[index]
        self.attempt = 1
        self.others: list[Job] = []  # jobs that share this one's call
        self.flight: tuple[int, str] | None = None  # entry of a step's cache that it fills
