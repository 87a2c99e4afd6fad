"""Gates as JUnit XML, which every CI shows, and as Markdown for a summary page."""

import itertools
import re
from collections.abc import Sequence
from xml.etree import ElementTree as ET

from paceline.load.gates import MET, Gate

_NOT_XML = re.compile("[^\t\n\r\x20-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")


def junit_xml(name: str, gates: Sequence[Gate], durations_s: dict[str, float]) -> bytes:
    """A JUnit document: a suite for each scenario, a case for each objective.

    A must that is missed or not known is a failure with the measured value and its interval; a should or stretch that
    is not met is `skipped`, so it is seen and stops nothing.

    Args:
        name: Of the whole, such as the run's id.
        gates: What was judged.
        durations_s: How long each scenario took.

    Source: the schema of Jenkins' xUnit plugin (junit-10.xsd), without what is optional.
    """
    root = ET.Element("testsuites", {"name": _xml(name), **_counts(gates)})
    by_scenario = sorted(gates, key=lambda gate: gate.scenario)
    for scenario, group in itertools.groupby(by_scenario, key=lambda gate: gate.scenario):
        part = list(group)
        time_s = f"{durations_s.get(scenario, 0.0):.3f}"
        about = {"name": _xml(scenario), "time": time_s, "errors": "0"}
        suite = ET.SubElement(root, "testsuite", about | _counts(part))
        for gate in part:
            case = ET.SubElement(
                suite, "testcase", classname=_xml(f"paceline.{scenario}"), name=_xml(gate.objective.name), time=time_s
            )
            if gate.failed:
                failure = ET.SubElement(case, "failure", message=_xml(gate.sentence), type=gate.outcome)
                failure.text = _xml(gate.sentence)
            elif gate.outcome != MET:
                ET.SubElement(case, "skipped", message=_xml(f"{gate.objective.level}: {gate.sentence}"))
            else:
                ET.SubElement(case, "system-out").text = _xml(gate.sentence)
    ET.indent(root)
    document: bytes = ET.tostring(root, encoding="utf-8", xml_declaration=True)
    return document + b"\n"


def _counts(gates: Sequence[Gate]) -> dict[str, str]:
    failures = sum(gate.failed for gate in gates)
    skipped = sum(gate.outcome != MET and not gate.failed for gate in gates)
    return {"tests": str(len(gates)), "failures": str(failures), "skipped": str(skipped)}


def _xml(text: str) -> str:
    """The text without what XML 1.0 cannot hold, escaped or not."""
    return _NOT_XML.sub("\ufffd", text)
