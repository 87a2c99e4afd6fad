"""Make golden.jsonl: questions with the words of the handbook that a right answer must hold: `python make_golden.py`.

The words were picked by reading each section. The script fails where one does not stand in its section, so that a
change of the handbook is noticed here and not as a worse answer.
"""

import json

from make_traffic import HERE, question_of, sections

SESSION = 0  # nobody's: golden questions have no conversation before them

MUST_SAY = {
    "I’m interested in working on a different or additional project. How can I do that?": "engineering staffing lead",
    "How can I become an interviewer or resume reviewer?": "be a SME to be an interviewer",
    "Should I compensate research participants?": "you should compensate them for their time",
    "What is PII?": "information that can be used to distinguish or trace",
    "When is pivoting a project appropriate?": "both 18F and the partner team still see a way forward",
    "When is pausing a project appropriate?": "one or more of the above conditions are present",
    "What does good financial health look like for TTSC?": "The primary indicator of financial stability",
    "Why does records management matter?": "Records management is the law",
    "Who is responsible for records management?": "All TTSC staff are responsible",
    "Can I ‘save’ billable hours to apply to a subsequent week?": "avoid billing for time you’ve worked",
    "How do supervisors review hours logged in Tock?": "review the hours their direct reports are logging",
    "How do I get my fingerprints taken and badge made in Chicago?": "security office on the second floor",
    "How do I access the building after hours in Chicago?": "If you need after-hours access, you can complete",
    "How do people dress in Chicago?": "Feel free to dress how you like",
    "How do I get a one-time password when I work from home?": "To get a one time password",
    "How do I visit another GSA building when I work from home?": "Your badge should work in other GSA buildings",
    "Are there times we shouldn’t collaborate with our partners?": "we might limit access",
    "What kind of help can the Writing Lab offer?": "happy to offer you generative, developmental",
    "What should I do if my issue isn't picked up?": "within three days of you filing it",
    "What is internal hiring?": "not posted to USAJobs",
    "What is a COR?": "helps the Contracting Officer",
    "How do I get started with a buy over $10,000 per year?": "with AcqDiv, visit the",
    "Who is eligible for the end of year performance bonus?": "may receive an Individual Performance Award",
    "How are GSA Google Groups different than regular Google Groups?": "work a little differently than regular",
    "How do I configure my GSA Google Group for non-GSA users?": "so non-GSA people can join",
    "How do I get access to New Relic?": "the name to use for the New Relic account",
    "How do I publish npm packages for TTS?": "published under the",
    "What is Slack?": "a tool and chat messaging application",
    "Is Slack content a federal record?": "is potentially a federal",
    "What is a Slack channel?": "A channel is a distinct place",
    "How do I change a reporting period I already filled out?": "Submit a Tock change request",
    "Which receipts must I keep?": "Receipts are required for lodging",
}


def plain(text: str) -> str:
    """The text with runs of white space as one space."""
    return " ".join(text.split())


def rows() -> list[dict[str, object]]:
    """One row a question. Raises ValueError for words that its section does not hold."""
    said: dict[str, str] = {}
    for section in sections():
        said.setdefault(question_of(section) or "", plain(section["text"]))
    for question, words in MUST_SAY.items():
        if words not in said.get(question, ""):
            msg = f"the section {question!r} does not say {words!r}"
            raise ValueError(msg)
    return [{"body": {"session": SESSION, "message": q}, "expect": [words]} for q, words in MUST_SAY.items()]


if __name__ == "__main__":
    lines = [json.dumps(row, ensure_ascii=False) + "\n" for row in rows()]
    (HERE / "golden.jsonl").write_text("".join(lines), encoding="utf-8")
    print(f"golden.jsonl: {len(lines)} questions")
