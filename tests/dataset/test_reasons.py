"""One list of reasons: every place that gives one gives a listed one, and each listed one is given somewhere."""

from __future__ import annotations

import ast
import pickle
from collections.abc import Iterator
from pathlib import Path

import pytest
from theodolite.annotate.fetch.ledger import MEANINGS
from theodolite.annotate.sources.clip import ClipRejection
from theodolite.annotate.verdict.gates import REASONS as GATE_REASONS
from theodolite.dataset.reasons import REASONS, find_reason, is_judgement, status_of

from ..typed import wrong

ROOT = Path(__file__).parents[2]
CALLS = {
    "ClipRejection": 0,
    "refuse": 0,
    "MediaError": 0,
    "check_count": 1,
    "failure_row": 2,
    "PoseReading": 0,
}
"""Functions that take a reason, and its place among their arguments."""


def sources() -> list[Path]:
    return [p for folder in ("annotate", "dataset", "recipes") for p in sorted((ROOT / folder).rglob("*.py"))]


def constants(node: ast.expr) -> Iterator[str]:
    """Strings that an expression may be: itself, branches of a condition, items of lists and tuples."""
    match node:
        case ast.Constant(value=str(text)):
            yield text
        case ast.IfExp(body=a, orelse=b):
            yield from constants(a)
            yield from constants(b)
        case ast.List(elts=items) | ast.Tuple(elts=items):
            for item in items:
                yield from constants(item)


def codes_in(tree: ast.AST) -> Iterator[tuple[int, str]]:
    """(line, code) of every reason that a file gives or asks for."""
    for node in ast.walk(tree):
        found: list[ast.expr] = []
        if isinstance(node, ast.Call):
            found += [k.value for k in node.keywords if k.arg == "reasons"]
        if isinstance(node, ast.AnnAssign) and node.value and ast.unparse(node.annotation) == "ReasonCode":
            found.append(node.value)
        match node:
            # def why() -> Reasons: return [(code, detail)]
            case ast.FunctionDef(returns=ast.Name(id="Reasons")):
                for inner in ast.walk(node):
                    match inner:
                        case ast.Return(value=ast.List(elts=[ast.Tuple(elts=[ast.Constant() as c, _])])):
                            found.append(c)
            case ast.Call(func=ast.Name(id=name) | ast.Attribute(attr=name), args=args) if name in CALLS:
                found += args[CALLS[name] : CALLS[name] + 1]
                found += [k.value for k in node.keywords if k.arg == "reason"]
            # reasons.append((code, detail)), reasons += [(code, detail)]
            case ast.Call(
                func=ast.Attribute(attr="append", value=ast.Attribute(attr="reasons")),
                args=[ast.Tuple(elts=[c, _])],
            ):
                found.append(c)
            case ast.AugAssign(target=ast.Attribute(attr="reasons"), value=ast.List(elts=items)):
                found += [item.elts[0] for item in items if isinstance(item, ast.Tuple)]
            case (
                ast.Assign(targets=[target], value=value)
                | ast.AnnAssign(target=target, value=ast.expr() as value)
            ):
                match target:
                    case ast.Name(id="reason" | "reasons"):
                        found.append(value)
                    case ast.Tuple(elts=[ast.Name(id="reason"), *_]) if isinstance(value, ast.Tuple):
                        found.append(value.elts[0])
            case ast.Compare(left=ast.Attribute(attr="reason"), comparators=[value]):
                found.append(value)
        for expression in found:
            for code in constants(expression):
                yield expression.lineno, code


@pytest.mark.slow
def test_every_reason_that_is_given_is_listed():
    given: set[str] = set(GATE_REASONS.values())
    for path in sources():
        for line, code in codes_in(ast.parse(path.read_text(encoding="utf-8"))):
            if code in MEANINGS and (path.parent.name == "fetch" or path.name == "fetching.py"):
                continue  # files that could not be had go into a ledger of their own, not into rows
            assert code in REASONS, f"{path.relative_to(ROOT)}:{line}: {code!r} is not in dataset/reasons.py"
            given.add(code)
    assert given == set(REASONS), f"listed, but given nowhere: {sorted(set(REASONS) - given)}"


def test_the_reader_of_reasons_sees_them():
    """The test above must not pass because it overlooks a place."""
    text = """
raise ClipRejection("a", "x")
raise ClipRejection("b" if short else "c", "x")
check_count(clip, "d", "x", 3, frames)
failure_row(clip, job, "e", "x")
progress.reasons.append(("f", "x"))
progress.reasons += [("g", "x")]
reason, detail = "h", "x"
code: ReasonCode = "i"
reasons = ["j", "k"]
rejection.reason != "l"
replace(nothing, reasons=("m", "n"))
PoseReading("o", "x")
def why() -> Reasons:
    return [("p", text(x))]
"""
    assert sorted(code for _, code in codes_in(ast.parse(text))) == list("abcdefghijklmnop")


def test_gates_judge():
    assert all(is_judgement(code) for code in GATE_REASONS.values())


@pytest.mark.parametrize(
    "code",
    [
        "geometry_not_finite",
        "given_poses_degenerate",
        "given_poses_too_few",
        "intrinsics_aspect_varies",
        "no_depth_on_tracks",
        "no_reconstruction",
        "keyframes_disconnected",
        "too_few_keyframes",
    ],
)
def test_what_is_measured_on_a_readable_clip_is_no_damage(code):
    assert status_of("rejected", [code]) == "rejected"
    assert status_of("rejected", [code, "unreadable_video"]) == "failed"


@pytest.mark.parametrize("code", ["anchors_disconnected", "too_few_anchors"])
def test_rows_of_earlier_versions_are_understood(code):
    assert code not in REASONS
    assert find_reason(code) is find_reason(code.replace("anchors", "keyframes")) is not None
    assert status_of("rejected", [code]) == "rejected"


def test_status():
    assert status_of("accepted", []) == "accepted"
    assert status_of("rejected", ["no_reason_of_ours"]) == "failed"


def test_entries_are_sentences():
    for code, reason in REASONS.items():
        for text in (reason.meaning, reason.remedy):
            assert text[0].isupper(), code
            assert text.endswith("."), code
            assert "|" not in text, code


def test_rejection_takes_listed_codes_only_and_crosses_processes():
    with pytest.raises(AssertionError, match="to_short"):
        ClipRejection(wrong("to_short"), "7 frames")
    back = pickle.loads(pickle.dumps(ClipRejection("too_short", "7 frames")))
    assert (back.reason, back.detail) == ("too_short", "7 frames")
