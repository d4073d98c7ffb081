"""Probe sets: read, built, saved, reloaded; whatever cannot be used is listed by line and kind."""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import dataclass

import pytest
from mass_samples import records, word_tokenizer
from tokenizers.processors import TemplateProcessing

from dyn_probe.data.records import PreferencePair
from dyn_probe.errors import BadInput
from dyn_probe.mass import KINDS, ProbePrompt, ProbeSet, SkippedResponse, build_probe_set, encode_probes, read_probe_set
from dyn_probe.mass.building import DERIVED, shuffle_words, with_unrelated
from dyn_probe.mass.conversations import prompt_text


def line(number, **changed):
    """One line of a probe file with all published fields, changed; None leaves a field out."""
    fields = {"prompt": f"prompt {number}", "chosen_selfr": "@ reasons"}
    fields |= {kind: f"{kind} {number}" for kind in KINDS}
    return {name: text for name, text in (fields | changed).items() if text is not None}


def written(path, lines):
    """A file of these lines: objects as JSON, strings as they are."""
    texts = [text if isinstance(text, str) else json.dumps(text, ensure_ascii=False) for text in lines]
    path.write_text("\n".join(texts) + "\n", encoding="utf-8")
    return path


def test_all_twelve_kinds_are_read(tmp_path):
    probes = read_probe_set(written(tmp_path / "p.jsonl", [line(1), line(2)]))
    assert probes.kinds == tuple(KINDS)
    assert len(KINDS) == 12
    assert len(probes) == 24
    assert probes.prompts[1].responses["irr_hum"] == "irr_hum 2"
    assert [s.kind for s in probes.skipped] == ["chosen_selfr"]


def test_every_defect_is_listed_by_line_and_kind(tmp_path):
    lines = [
        line(1, rejected=""),
        line(2, irr_test=None, irr_hum=["a list"]),
        "{not json",
        "[1, 2]",
        line(3, prompt=" "),
        line(1),
        "",
        line(4, chosen="  \n", extra="x"),
    ]
    probes = read_probe_set(written(tmp_path / "p.jsonl", lines))
    listed = {(s.source, s.kind): s.reason for s in probes.skipped}
    assert listed.pop(("p.jsonl:1", "rejected")) == "empty response"
    assert listed.pop(("p.jsonl:2", "irr_test")) == "missing"
    assert listed.pop(("p.jsonl:2", "irr_hum")) == "wanted text, got list \"['a list']\""
    assert listed.pop(("p.jsonl:3", "*")).startswith("not JSON: ")
    assert listed.pop(("p.jsonl:4", "*")) == "wanted a JSON object, got list '[1, 2]'"
    assert listed.pop(("p.jsonl:5", "*")) == "prompt must be non-empty text, got str ' '"
    assert listed.pop(("p.jsonl:6", "*")) == "same prompt as p.jsonl:1"
    assert listed.pop(("p.jsonl:8", "chosen")) == "empty response"
    assert listed.pop(("p.jsonl", "extra")) == "field ignored (not a response kind)"
    assert "self-generated" in listed.pop(("p.jsonl", "chosen_selfr"))
    assert not listed
    assert len(probes) == 3 * 12 - 4


def test_a_kind_that_no_line_has_is_said_once(tmp_path):
    lines = [{"prompt": f"p{i}", "chosen": "yes", "rejected": "no"} for i in range(50)]
    probes = read_probe_set(written(tmp_path / "p.jsonl", lines))
    assert probes.kinds == ("chosen", "rejected")
    assert len(probes.skipped) == 10
    assert {s.reason for s in probes.skipped} == {"in none of 50 prompts"}


def test_kinds_and_prompts_can_be_chosen(tmp_path):
    path = written(tmp_path / "p.jsonl", [line(i) for i in range(5)])
    probes = read_probe_set(path, kinds=["chosen", "chosen_selfr"], prompts=2)
    assert probes.kinds == ("chosen", "chosen_selfr")
    assert [p.prompt for p in probes.prompts] == ["prompt 0", "prompt 1"]
    assert ("irr_hum", "field ignored (a kind that was not requested)") in {(s.kind, s.reason) for s in probes.skipped}


@pytest.mark.parametrize("lines", [[], ["{"], [line(1, **dict.fromkeys(KINDS, ""))], [{"prompt": "p"}]])
def test_nothing_left_is_an_error_that_says_why(tmp_path, lines):
    with pytest.raises(BadInput, match=r"none remains\. (Skipped: p\.jsonl|Nothing was skipped)"):
        read_probe_set(written(tmp_path / "p.jsonl", lines))


def test_an_unreadable_file_is_an_error(tmp_path):
    with pytest.raises(BadInput, match="cannot read the probe file"):
        read_probe_set(tmp_path / "absent.jsonl")
    (tmp_path / "latin.jsonl").write_bytes(b'{"prompt": "caf\xe9"}\n')
    with pytest.raises(BadInput, match="UTF-8"):
        read_probe_set(tmp_path / "latin.jsonl")


def test_a_saved_set_reloads_as_it_was(tmp_path):
    probes = read_probe_set(written(tmp_path / "p.jsonl", [line(1, chosen=' é\n\u2028\t"q" '), line(2)]))
    again = read_probe_set(probes.save(tmp_path / "run" / "probes.jsonl"))
    assert [(p.prompt, p.responses, p.prompt_id) for p in again.prompts] == [
        (p.prompt, p.responses, p.prompt_id) for p in probes.prompts
    ]
    assert not list((tmp_path / "run").glob("*.partial"))


def test_a_different_set_is_not_replaced_unless_forced(tmp_path):
    first, second = build_probe_set(records(3)), build_probe_set(records(4))
    path = first.save(tmp_path / "probes.jsonl")
    first.save(path)
    with pytest.raises(BadInput, match="holds a different probe set"):
        second.save(path)
    second.save(path, force=True)
    assert len(read_probe_set(path).prompts) == 4


def words(text):
    return Counter(text.split())


def test_a_set_built_from_records_has_the_derived_kinds():
    given = records()
    probes = build_probe_set(given)
    chosen = [r["chosen"] for r in given]
    assert not probes.skipped
    for prompt, record in zip(probes.prompts, given, strict=True):
        r = prompt.responses
        assert (r["chosen"], r["rejected"]) == (record["chosen"], record["rejected"])
        assert r["irr_train"] in chosen
        assert r["irr_train"] not in (r["chosen"], r["rejected"])
        assert words(r["random_permute"]) == words(r["chosen"])
        assert r["random_permute"] != r["chosen"]
        assert words(r["random_nonhum"]) in [words(c) for c in chosen if c not in (r["chosen"], r["irr_train"])]
        assert r["random_permute"].startswith(" ")
        assert not r["random_permute"].startswith("  ")


def test_the_seed_decides_and_nothing_else():
    given = records(20)
    one, same, other = (build_probe_set(given, prompts=8, seed=s) for s in (1, 1, 2))
    assert one == same
    assert one != other
    assert [p.prompt for p in one.prompts] != [p.prompt for p in other.prompts]
    assert len(one.prompts) == 8
    assert [p.prompt for p in build_probe_set(given, prompts=None).prompts] == [r["prompt"] for r in given]


def test_the_same_set_in_another_process(tmp_path):
    import subprocess
    import sys

    script = (
        "import json, sys\nfrom dyn_probe.mass import build_probe_set\n"
        "print(json.dumps([dict(p.responses) for p in build_probe_set(json.loads(sys.argv[1])).prompts]))"
    )
    command = [sys.executable, "-c", script, json.dumps(records())]
    done = subprocess.run(command, capture_output=True, text=True, check=True, env={"PYTHONHASHSEED": "7"})
    assert json.loads(done.stdout) == [dict(p.responses) for p in build_probe_set(records()).prompts]


@dataclass
class Record:
    """A record as an object."""

    prompt: object
    chosen: object
    rejected: object
    source: str = "file:1"


def test_records_may_be_objects_and_defects_are_listed():
    given = [
        Record("p", " yes it was", " no", "a:1"),
        Record("p", " other", " no", "a:2"),
        Record("q", "", " no", "a:3"),
        Record("r", [{"role": "assistant"}], " no", "a:4"),
        Record("s", " green", " blue", "a:5"),
    ]
    probes = build_probe_set(given)
    assert [p.source for p in probes.prompts] == ["a:1", "a:5"]
    listed = {(s.source, s.kind): s.reason for s in probes.skipped}
    assert listed[("a:2", "*")] == "same prompt as a:1"
    wanted = "wanted non-empty text, or a conversation whose answer is one message"
    assert listed[("a:3", "chosen")] == listed[("a:4", "chosen")] == wanted
    assert listed[("a:5", "random_permute")] == "cannot be built: fewer than two different words"
    assert "random_permute" not in probes.prompts[1].responses


def turns(*contents):
    """A conversation of alternating user and assistant messages."""
    return tuple({"role": ("user", "assistant")[i % 2], "content": text} for i, text in enumerate(contents))


def test_conversations_without_a_template_become_lines():
    def answer(text):
        return ({"role": "assistant", "content": text},)

    given = [
        Record(turns("why ?", "because", "how ?"), answer("yes it was"), answer("no")),
        Record(turns("red ?"), answer("green it was"), turns("no", "yes")),
    ]
    probes = build_probe_set(given, tokenizer=word_tokenizer())
    assert [p.prompt for p in probes.prompts] == ["User: why ?\nAssistant: because\nUser: how ?\nAssistant:"]
    assert probes.prompts[0].responses["chosen"] == " yes it was"
    assert probes.prompts[0].responses["rejected"] == " no"
    assert [s.kind for s in probes.skipped if "one message" in s.reason] == ["rejected"]
    assert build_probe_set(given) == probes


def test_conversations_are_written_by_the_chat_template():
    tokenizer = word_tokenizer()
    turn = "{% for m in messages %}[{{ m.role }}] {{ m.content }}\n{% endfor %}"
    tokenizer.chat_template = turn + "{% if add_generation_prompt %}[assistant] {% endif %}"
    record = Record(turns("why ?"), ({"role": "assistant", "content": "yes it was"},), turns("no")[:1])
    (prompt,) = build_probe_set([record], tokenizer=tokenizer).prompts
    assert prompt.prompt == "[user] why ?\n[assistant] "
    assert prompt.responses["chosen"] == "yes it was"


def test_the_chat_template_of_a_probe_reads_tools_and_its_own_variables():
    tokenizer = word_tokenizer()
    tokenizer.chat_template = "{{ loud }} {{ tools[0].function.name }} {{ messages[0].content }}"
    pair = PreferencePair(
        turns("why ?"), turns("", "yes")[1:], turns("", "no")[1:], "here:1",
        ({"type": "function", "function": {"name": "tide"}},), {"loud": "LOUD"},
    )  # fmt: skip
    assert build_probe_set([pair], tokenizer=tokenizer).prompts[0].prompt == "LOUD tide why ?"


def test_a_beginning_of_sequence_is_not_doubled():
    tokenizer = word_tokenizer(end="</s>")
    tokenizer.add_special_tokens({"bos_token": "<s>"})
    tokenizer.chat_template = "{{ bos_token }}{{ messages[0].content }}"
    assert prompt_text(turns("why ?"), tokenizer) == "<s>why ?"  # this tokenizer adds none by itself
    add = TemplateProcessing(single="<s> $A", special_tokens=[("<s>", tokenizer.bos_token_id)])
    tokenizer.backend_tokenizer.post_processor = add
    assert prompt_text(turns("why ?"), tokenizer) == "why ?"


def test_an_unrelated_answer_is_never_the_rejected_one():
    """Two answers in all: another prompt's chosen is this prompt's chosen or rejected."""
    flips = [("yes", "no"), ("no", "yes")] * 4
    probes = build_probe_set([Record(f"p{i}", c, r) for i, (c, r) in enumerate(flips)])
    assert probes.kinds == ("chosen", "rejected")
    assert {s.reason for s in probes.skipped if s.kind == "irr_train"} == {
        "cannot be built: no other prompt has a different answer"
    }


def test_words_are_shuffled_into_another_order():
    assert shuffle_words("b a", "any") == "a b"
    assert shuffle_words("a", "any") is None
    assert shuffle_words(" a a  a", "any") is None
    assert shuffle_words("  a b c d", "s") == shuffle_words("  a b c d", "s")


def test_a_new_kind_replaces_only_where_it_has_a_text():
    probes = build_probe_set(records(2))
    ids = [p.prompt_id for p in probes.prompts]
    again = probes.with_kind("chosen_initial", {ids[0]: "yes"}, (SkippedResponse("x", "chosen_initial", "empty"),))
    assert again.kinds[:2] == ("chosen", "chosen_initial")
    assert "chosen_initial" not in again.prompts[1].responses
    assert again.skipped[-1].reason == "empty"
    assert "chosen_initial" not in probes.kinds


def test_prompt_ids_name_the_text():
    one, two = build_probe_set(records(2)).prompts
    assert one.prompt_id != two.prompt_id
    assert len(one.prompt_id) == 16
    assert int(one.prompt_id, 16) >= 0
    assert ProbeSet((one,)).prompts[0].prompt_id == one.prompt_id


def test_long_responses_are_skipped_by_line_and_kind(tmp_path):
    lines = [{"prompt": "the cat ?", "chosen": " yes", "rejected": " no it was red", "irr_hum": " yes it was"}]
    probes = read_probe_set(written(tmp_path / "p.jsonl", lines), kinds=["chosen", "rejected", "irr_hum"])
    encoded = encode_probes(probes, word_tokenizer(), max_length=7)
    assert [r.kind for r in encoded.responses] == ["chosen", "irr_hum"]
    assert encoded.skipped[-1] == SkippedResponse(
        "p.jsonl:1", "rejected", "prompt and response have 8 tokens, more than 7"
    )
    with pytest.raises(BadInput, match=r"no probe response can be measured.*p\.jsonl:1 \[chosen\]"):
        encode_probes(probes, word_tokenizer(), max_length=2)


def lines_of(tmp_path, *lines):
    path = tmp_path / "probes.jsonl"
    path.write_text("\n".join(lines), encoding="utf-8")
    return path


def test_half_characters_are_listed_by_line_and_kind(tmp_path):
    path = lines_of(
        tmp_path,
        r'{"prompt": "a\ud800?", "chosen": "yes"}',
        r'{"prompt": "b?", "chosen": "\udfff yes", "rejected": "no", "mine\ud83d": "x"}',
        r'{"prompt": "c?", "chosen": "\ud83d\ude00 yes", "rejected": ["\ud800"]}',
    )
    probes = read_probe_set(path, kinds=("chosen", "rejected"))
    assert [(p.prompt, dict(p.responses)) for p in probes.prompts] == [
        ("b?", {"rejected": "no"}), ("c?", {"chosen": "😀 yes"}),
    ]  # fmt: skip
    listed = {(s.source, s.kind): s.reason for s in probes.skipped}
    assert listed["probes.jsonl:1", "*"] == r"prompt contains a lone surrogate (\ud800) at character 1"
    assert listed["probes.jsonl:2", "chosen"] == r"contains a lone surrogate (\udfff) at character 0"
    assert listed["probes.jsonl:3", "rejected"].startswith("wanted text, got list")
    for one in probes.skipped:
        f"{one.source}{one.kind}{one.reason}".encode()
    encode_probes(probes, word_tokenizer())


@pytest.mark.parametrize("depth", [500, 950, 100_000])
def test_deep_nesting_is_listed_by_line(tmp_path, depth):
    deep = "[" * depth + "]" * depth
    path = lines_of(tmp_path, deep, f'{{"prompt": "a?", "chosen": {deep}}}', '{"prompt": "b?", "chosen": "yes"}')
    probes = read_probe_set(path, kinds=("chosen",))
    assert [p.prompt for p in probes.prompts if p.responses] == ["b?"]
    assert [s.source for s in probes.skipped] == ["probes.jsonl:1", "probes.jsonl:2"]


def test_a_number_of_too_many_digits_is_listed(tmp_path):
    path = lines_of(tmp_path, f'{{"prompt": "a?", "chosen": {"9" * 5000}}}', '{"prompt": "b?", "chosen": "yes"}')
    (one,) = read_probe_set(path, kinds=("chosen",)).skipped
    assert one.source == "probes.jsonl:1" and one.reason.startswith("not JSON: Exceeds the limit")


def test_records_with_half_characters_are_listed():
    broken = {"prompt": "x?", "chosen": " yes \ud800", "rejected": " no"}
    probes = build_probe_set([*records(), broken])
    assert len(probes.prompts) == 6
    assert [(s.source, s.kind) for s in probes.skipped if "lone surrogate" in s.reason] == [("record 7", "chosen")]


def test_unrelated_kinds_are_made_only_where_a_set_has_none():
    plain = build_probe_set(records())
    bare = ProbeSet(
        tuple(
            ProbePrompt(p.prompt, {k: p.responses[k] for k in ("chosen", "rejected")}, p.source) for p in plain.prompts
        ),
        (
            SkippedResponse("f", "irr_train", "in none of 6 prompts"),
            SkippedResponse("f:2", "irr_train", "empty response"),
        ),
    )
    made = with_unrelated(bare)
    assert made.prompts == plain.prompts and made.built == DERIVED
    assert [s.source for s in made.skipped] == ["f:2"]
    assert with_unrelated(plain) is plain
    lonely = ProbeSet((ProbePrompt("a?", {"rejected": " no"}),))
    assert with_unrelated(lonely) is lonely


def test_cut_responses_stay_open_and_are_saved_so(tmp_path):
    tokenizer = word_tokenizer()
    prompts = (ProbePrompt("the cat", {"chosen": " sat", "rejected": " ran"}, "probes.jsonl:1", ("rejected",)),)
    probes = ProbeSet(prompts)
    ends = {one.kind: one.ids[-1] == tokenizer.eos_token_id for one in encode_probes(probes, tokenizer).responses}
    assert ends == {"chosen": True, "rejected": False}
    again = read_probe_set(probes.save(tmp_path / "probes.jsonl"), kinds=("chosen", "rejected"))
    assert again == probes
    path = lines_of(tmp_path, '{"prompt": "the cat", "chosen": " sat", "unfinished": "chosen"}')
    wrong = read_probe_set(path, kinds=("chosen",))
    assert wrong.prompts[0].unfinished == ()
    assert [(s.kind, s.reason) for s in wrong.skipped] == [
        ("unfinished", "ignored: wanted a list of kinds, got str 'chosen'")
    ]
