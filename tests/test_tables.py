"People's own tables: read whole or refused, and what was understood is said"
import csv
import gzip
import io
import json
import lzma
import random
import warnings
from collections import Counter

import numpy as np
import pandas as pd
import pytest
from datasets import Dataset
from pyarrow import parquet

from lottery_nb import datafiles, tasks
from lottery_nb.datafiles import data_files, own_files, read_rows
from lottery_nb.files import BadInput
from lottery_nb.labels import IDENTITY, pack_map, read_records
from lottery_nb.patterns import CLASSES
from lottery_nb.spec import RunSpec, TicketSpec
from lottery_nb.tasks import about_data, get_task, load_data, task_of, understood

WORDS = "river stone cloud paper glass moon bread music tree sun".split()


def spec(path, **fields): return RunSpec(task=str(path), **fields)


def texts(count, seed=0):
    "Different sentences"
    draw = random.Random(seed)
    return [f"{' '.join(draw.choices(WORDS, k=5))} {number}" for number in range(count)]


def table(labels, **more): return pd.DataFrame({"text": texts(len(labels)), "label": labels} | more)


def write(path, frame, **how):
    "As pandas writes it"
    path.parent.mkdir(parents=True, exist_ok=True)
    frame.to_csv(path, index=False, **how)
    return path


def rows_of(splits): return sorted((row["text"], row["label"]) for part in splits.values() for row in part)


# ---------------------------------------------------------------------------------------------- labels
@pytest.mark.parametrize("values, classes", [
    ([0., 1.] * 20, ("0", "1")), ([1., 2., 3., 4., 5.] * 8, ("1", "2", "3", "4", "5")), (["1.0", "0"] * 20, ("0", "1")), ([True, False] * 20, ("False", "True")),
    (["none", "favour"] * 20, ("favour", "none")), (["10", "9", "-1"] * 10, ("-1", "9", "10")),
])
def test_labels_that_are_classes(tmp_path, values, classes):
    paths = [write(tmp_path/"a.csv", table(values))]
    table(values).to_json(tmp_path/"b.jsonl", orient="records", lines=True)
    if len(set(map(type, values))) == 1: table(values).to_parquet(tmp_path/"c.parquet")
    for path in [*paths, tmp_path/"b.jsonl", *tmp_path.glob("*.parquet")]:
        assert (task_of(spec(path)).kind, task_of(spec(path)).labels) == ("classification", classes)
        assert len(rows_of(load_data(spec(path)))) == len(values)


def test_labels_with_fractions_are_scores(tmp_path):
    path = write(tmp_path/"a.csv", table([1, 2.5, 3, 5] * 5))
    assert task_of(spec(path)).kind == "regression" and task_of(spec(path, kind="classification")).labels == ("1", "2.5", "3", "5")
    whole = write(tmp_path/"b.csv", table([1, 2, 3, 5] * 5))
    assert task_of(spec(whole)).kind == "classification" and task_of(spec(whole, kind="regression")).kind == "regression"
    assert load_data(spec(whole, kind="regression"))["dev"]["label"][0] in (1., 2., 3., 5.)


@pytest.mark.parametrize("word", ["NA", "nan", "", " ", "N/A", "null", "None", "<NA>"])
def test_a_missing_label_is_no_class(tmp_path, word):
    path = write(tmp_path/"a.csv", table(["0", "1"] * 3 + [word, "1"]))
    with pytest.raises(BadInput, match=r"a.csv, row 7: column label is empty .*1 of 8 rows have no label"): load_data(spec(path))


@pytest.mark.parametrize("value", ["null", "NaN", "\"nan\"", "Infinity"])
def test_a_missing_label_of_json_is_no_class(tmp_path, value):
    path = tmp_path/"a.jsonl"
    path.write_text("".join(f'{{"text": "{text}", "label": {value if i == 4 else i % 2}}}\n' for i, text in enumerate(texts(8))))
    with pytest.raises(BadInput, match="a.jsonl, row 5: column label is empty"): load_data(spec(path))


def test_a_decimal_comma_is_not_a_class(tmp_path):
    path = write(tmp_path/"a.csv", table(["1,5", "2", "3,5", "2"] * 5), sep=";")
    with pytest.raises(BadInput, match="decimal comma"): load_data(spec(path))
    assert task_of(spec(path, kind="classification")).labels == ("1,5", "2", "3,5")


# ---------------------------------------------------------------------------------------------- formats
NASTY = ['say "x"', '"all of it"', "two\nlines", "tab\there", "a; b, c | d", "naïve – café", "", " spaces ", "\u2028 line", "'quote", '"', "a\rb", "NA", "0.0"]
FORMATS = {
    "a.csv": dict(), "b.CSV": dict(), "c.csv.gz": dict(), "d.csv": dict(sep=";", encoding="utf-8-sig"), "e.tsv": dict(sep="\t"), "f.csv": dict(sep="|"),
    "g.tsv.xz": dict(sep="\t"), "h.csv": dict(sep="\t", encoding="utf-16"), "i.csv": dict(quoting=csv.QUOTE_ALL), "j.csv": dict(lineterminator="\r\n", sep=";"),
}


@pytest.mark.parametrize("name", FORMATS)
def test_what_pandas_writes_is_read_as_it_was(tmp_path, name):
    frame = pd.DataFrame({"text": NASTY, "label": ["yes", "no"] * (len(NASTY) // 2)})
    if "quoting" not in FORMATS[name]: frame = frame[frame.text != "a\rb"]   # pandas does not quote it, so nobody can read it back
    if FORMATS[name].get("sep") == "\t": frame = frame[~frame.text.str.contains("\n")]
    assert [(row["text"], row["label"]) for row in read_rows(write(tmp_path/name, frame, **FORMATS[name])).rows] == list(frame.itertuples(index=False, name=None))


def test_json_and_parquet_are_read_as_they_were(tmp_path):
    frame = pd.DataFrame({"text": NASTY, "label": [0, 1] * (len(NASTY) // 2)})
    frame.to_json(tmp_path/"a.json", orient="records")
    frame.to_json(tmp_path/"b.json", orient="records", lines=True)
    frame.to_json(tmp_path/"c.JSONL.gz", orient="records", lines=True, compression="gzip")
    frame.to_parquet(tmp_path/"d.parquet")
    (tmp_path/"e.json").write_text(json.dumps(frame.to_dict("records"), indent=2), encoding="utf-8-sig")
    for path in tmp_path.iterdir(): assert read_rows(path).rows == frame.to_dict("records"), path.name


def test_inner_fields_have_dotted_names(tmp_path):
    path = tmp_path/"a.jsonl"
    path.write_text("".join(json.dumps({"data": {"text": text, "by": {"title": "x"}}, "gold": {"label": i % 2}}) + "\n" for i, text in enumerate(texts(20))))
    with pytest.raises(BadInput, match="data.text, data.by.title, gold.label"): load_data(spec(path, columns="text,label"))
    assert len(rows_of(load_data(spec(path, columns="data.text,gold.label")))) == 20
    pair = load_data(spec(path))   # title and text are both texts by name
    assert pair["dev"].column_names == ["text", "text_pair", "label"]


@pytest.mark.parametrize("text, message", [
    ("label,text\n0,one, two\n1,three\n", "row 1: expected 2 columns, found 3; quote a text that holds ','"),
    ("text,label\none,0\ntwo\n", "row 2: expected at least 2 columns, found 1"),
    ('text,label\n"one,0\ntwo,1\n', "cannot be read: unexpected end of data .line 3"),
    ('text,label\n"one" said,0\n', "cannot be read: .*line 2"),
    ("text,text,label\na,b,0\n", "column text stands twice"),
    ("text;note|label\na;b|c\n", "could be cut at any of ';' '|'; give delimiter"),
    ("text\nlabel\n", "cannot tell the text and label columns from its header text"),
    ("text,label\na\0b,0\n", "holds NUL bytes"),
    ("text,label\n" + "x" * 10_000_000 + ",0\n", "field larger than field limit"),
    ("x" * 10_000_000, "field larger than field limit"),
])
def test_tables_that_are_not_whole_are_refused(tmp_path, text, message):
    (tmp_path/"a.csv").write_text(text)
    with pytest.raises(BadInput, match=rf"a\.csv.*{message}"): load_data(spec(tmp_path/"a.csv"))


def test_quotes_of_tabbed_tables(tmp_path):
    path = tmp_path/"a.tsv"
    path.write_text('text\tlabel\n"say ""one"""\t0\n' + "".join(f"{text}\t{i % 2}\n" for i, text in enumerate(texts(9))))   # pandas
    assert read_rows(path).rows[0]["text"] == 'say "one"'
    path.write_text('text\tlabel\n"Never closed\t0\n' + "".join(f"{text}\t{i % 2}\n" for i, text in enumerate(texts(9))))   # GLUE
    assert read_rows(path).rows[0]["text"] == '"Never closed' and len(read_rows(path).rows) == 10
    path.write_text('text\tlabel\n"opens\t0\nplain\t1\ncloses"\t0\n')
    with pytest.raises(BadInput, match="3 rows if its quotes are letters and 1 if they enclose text"): read_rows(path)


def test_encodings(tmp_path):
    path = write(tmp_path/"a.csv", table(["ja", "né"] * 10), encoding="cp1250")
    with pytest.raises(BadInput, match="a.csv cannot be read as utf-8.*encoding=cp1252"): load_data(spec(path))
    assert task_of(spec(path, encoding="cp1250")).labels == ("ja", "né")
    with pytest.raises(BadInput, match="cannot be read as utf-16"): load_data(spec(path, encoding="utf-16"))
    glued = tmp_path/"b.csv"
    glued.write_bytes("\ufefflabel,text\n0,one\n".encode() + "\ufeff1,two\n0,three\n1,four\n\ufeff".encode())
    assert task_of(spec(glued)).labels == ("0", "1") and len(rows_of(load_data(spec(glued)))) == 4


def test_a_delimiter_may_be_given(tmp_path):
    path = write(tmp_path/"a.csv", pd.DataFrame({"text, or more": texts(10), "label": ["x", "y"] * 5}), sep=";")
    columns = "text, or more;label"
    with pytest.raises(BadInput, match="cannot tell the text"): load_data(spec(path))
    with pytest.raises(BadInput, match="must be one of"): load_data(spec(path, delimiter=";", columns="text,label"))
    assert read_rows(path, delimiter="semicolon").names == columns.split(";")
    (tmp_path/"x.jsonl").write_text('{"text": "a", "label": 1}\n')
    table([0, 1]).to_parquet(tmp_path/"x.parquet")
    with pytest.raises(BadInput, match="delimiter means nothing to a .jsonl file, got ';'"): load_data(spec(tmp_path/"x.jsonl", delimiter=";"))
    with pytest.raises(BadInput, match="encoding means nothing to a .parquet file"): load_data(spec(tmp_path/"x.parquet", encoding="utf-8"))


@pytest.mark.parametrize("line, message", [
    ('{"text": ["a", "b"], "label": 0}', "row 1: column text is list"), ('{"text": "\\ud800", "label": 0}', "row 1: column text has half a character"),
    ('{"text": null, "label": 0}', "row 1: column text is missing"), ('{"text": "a", "text": "b", "label": 0}', "row 1: expected one JSON object"),
    ("[" * 200_000, "row 1: expected one JSON object"), ('{"a": ' * 50_000 + "1" + "}" * 50_000, "row 1: expected one JSON object"),
    ('{"text": "a", "label": ' + "7" * 6000 + "}", "row 1: expected one JSON object"),
])
def test_hostile_json_lines(tmp_path, line, message):
    (tmp_path/"a.jsonl").write_text(line + "\n" + '{"text": "b", "label": 1}\n{"text": "c", "label": 0}\n{"text": "d", "label": 1}\n')
    with pytest.raises(BadInput, match=f"a.jsonl, {message}"): load_data(spec(tmp_path/"a.jsonl", columns="text,label"))


@pytest.mark.parametrize("opener, ending", [(gzip.open, ".gz"), (lzma.open, ".xz")])
@pytest.mark.parametrize("name", ["a.csv", "a.jsonl", "a.json", "a.parquet"])
def test_a_bomb_is_stopped(tmp_path, monkeypatch, name, opener, ending):
    monkeypatch.setattr(datafiles, "UNPACKED", 10**6)
    with opener(tmp_path/(name + ending), "wb") as file: file.write(b'{"text": "' + b"a" * 4 * 10**6)
    with pytest.raises(BadInput, match="unpacks to more than 50 times its size"): read_rows(tmp_path/(name + ending))


def test_a_part_of_a_data_set_is_not_all_of_it(tmp_path):
    table([0, 1] * 5).to_parquet(tmp_path/"train-00000-of-00001.parquet")
    table([0, 1] * 2).to_parquet(tmp_path/"validation-00000-of-00001.parquet")
    assert own_files(spec(tmp_path/"train-00000-of-00001.parquet")).dev.name == "validation-00000-of-00001.parquet"
    table([0, 1] * 5).to_parquet(tmp_path/"train-00001-of-00003.parquet")
    with pytest.raises(BadInput, match="is one of 3 files of a data set; join them"): load_data(spec(tmp_path/"train-00001-of-00003.parquet"))


# ---------------------------------------------------------------------------------------------- which rows evaluate
@pytest.mark.parametrize("train, dev", [
    ("train.csv", "dev.csv"), ("reviews_train.csv", "reviews_dev.csv"), ("train.csv", "dev.csv.gz"), ("train_reviews.csv", "valid_reviews.csv"), ("train.csv", "validation.jsonl"),
    ("reviews.csv", "reviews_test.csv"), ("Train.CSV", "Test.CSV"), ("reviewsTrain.csv", "reviewsVal.csv"), ("my-training-set.tsv", "my-eval-set.tsv"), ("trainset.csv", "devset.csv"),
])
def test_development_files_however_named(tmp_path, train, dev):
    sep = "\t" if "tsv" in train else ","
    path = write(tmp_path/train, table([0, 1] * 10), sep=sep)
    other = pd.DataFrame({"text": ["new one", "new two"], "label": [1, 0]})
    other.to_json(tmp_path/dev, orient="records", lines=True) if "json" in dev else write(tmp_path/dev, other, sep=sep)
    write(tmp_path/"elsewhere_dev.csv", table([5, 6]))
    assert load_data(spec(path))["dev"]["text"][:] == ["new one", "new two"] and len(load_data(spec(path))["train"]) == 20
    assert about_data(spec(path))["dev_rows"] == dev and [found.name for found in data_files(spec(path))] == [train, dev]
    assert len(load_data(spec(path, split="stratified"))["dev"]) == 4   # asked for, the file beside it is not read


def test_a_development_file_may_be_given(tmp_path):
    path, other = write(tmp_path/"a.csv", table([0, 1] * 10)), write(tmp_path/"b.tsv", table([1, 0]), sep="\t")
    assert len(load_data(spec(path, dev=str(other)))["dev"]) == 2 and len(load_data(spec(path))["dev"]) == 4
    assert about_data(spec(path, dev=str(other)))["dev_rows"] == "b.tsv (2 of its texts train too)"
    with pytest.raises(BadInput, match="nowhere.csv does not exist"): load_data(spec(path, dev="nowhere.csv"))
    write(tmp_path/"c.csv", table([0, 1]).drop(columns="label"))
    with pytest.raises(BadInput, match="c.csv, row 1: column label is missing"): load_data(spec(path, dev=str(tmp_path/"c.csv")))


def test_a_table_without_labels_is_passed_over_with_a_word(tmp_path):
    path = write(tmp_path/"train.csv", table([0, 1] * 10))
    write(tmp_path/"test.csv", table([0, 1]).drop(columns="label"))
    assert len(load_data(spec(path))["dev"]) == 4 and "not read: test.csv (no column label)" in understood(spec(path))
    assert data_files(spec(path)) == [path]
    write(tmp_path/"valid.csv", table([0, 1]))
    assert len(load_data(spec(path))["dev"]) == 2


def test_two_development_files_are_one_too_many(tmp_path):
    path = write(tmp_path/"train.csv", table([0, 1] * 10))
    for name in ("dev.tsv", "dev.csv.gz"): write(tmp_path/name, table([0, 1]), sep="\t" if "tsv" in name else ",")
    with pytest.raises(BadInput, match="dev.csv.gz and dev.tsv beside it could both evaluate; give dev"): load_data(spec(path))
    write(tmp_path/"dev.csv", table([0, 1]))
    assert about_data(spec(path))["dev_rows"].startswith("dev.csv (")


def test_the_split_is_stratified_and_parts_no_duplicates(tmp_path):
    frame = pd.concat([table(["common"] * 95 + ["rare"] * 3)] * 2).sample(frac=1, random_state=1)
    splits = load_data(spec(write(tmp_path/"a.csv", frame)))
    assert not set(splits["train"]["text"]) & set(splits["dev"]["text"])
    assert [Counter(part["label"]) for part in splits.values()] == [{0: 152, 1: 4}, {0: 38, 1: 2}]   # 190 // 5; one of three rare texts, twice
    assert "98 repeated texts kept on the side of the first" in about_data(spec(tmp_path/"a.csv"))["dev_rows"]
    assert load_data(spec(tmp_path/"a.csv", seed=7))["dev"].to_list() == splits["dev"].to_list()


def test_a_random_split_is_that_of_before(tmp_path):
    path = write(tmp_path/"a.csv", table([0, 1] * 30))
    kept = sorted(np.random.default_rng(0).permutation(60)[:12])
    assert load_data(spec(path, split="random"))["dev"]["text"][:] == [texts(60)[i] for i in kept]


def test_groups_of_a_column_stay_on_one_side(tmp_path):
    path = write(tmp_path/"a.csv", table([0, 1] * 50, author=[f"author {i // 7}" for i in range(100)]))
    authors = dict(zip(texts(100), [i // 7 for i in range(100)]))
    train, dev = ({authors[text] for text in part["text"]} for part in load_data(spec(path, split="author")).values())
    assert train and dev and not train & dev and "rows of one author on one side" in understood(spec(path, split="author"))
    with pytest.raises(BadInput, match="split must be one of stratified, random, text, label, author; got 'autor' .did you mean 'author'"): load_data(spec(path, split="autor"))
    write(path, table([0, 1] * 50, author=["one"] * 100))
    with pytest.raises(BadInput, match="no rows can be set aside"): load_data(spec(path, split="author"))


def test_a_changed_table_is_read_again(tmp_path):
    path = write(tmp_path/"a.csv", table([0, 1] * 10))
    assert task_of(spec(path)).labels == ("0", "1")
    write(path, table(["x", "y", "z"] * 10))
    assert task_of(spec(path)).labels == ("x", "y", "z") and len(rows_of(load_data(spec(path)))) == 30


def test_fields_for_tables_reach_the_sources_that_are_tables():
    from lottery_nb.baseline import source_spec, target_spec
    both = TicketSpec(task="a.csv", source="mlm", kind="regression", dev="b.csv")
    assert (target_spec(both).kind, source_spec(both).kind, source_spec(both).dev) == ("regression", "", "")
    only = TicketSpec(task="sst2", source="a.csv", delimiter=";")
    assert (target_spec(only).delimiter, source_spec(only).delimiter) == ("", ";")


# ---------------------------------------------------------------------------------------------- what is said
@pytest.mark.parametrize("name", ["sst2", "mnli", "stsb", "squad", "mlm"])
def test_every_source_says_what_it_is(name):
    about, splits = about_data(RunSpec(task=name)), load_data(RunSpec(task=name))
    assert json.loads(json.dumps(about)) == about and about["rows"] == {split: len(part) for split, part in splits.items()} and about["files"] == []
    if about["classes"]: assert Counter(splits["dev"]["label"]) == {i: counts["dev"] for i, counts in enumerate(about["classes"].values()) if counts["dev"]}
    assert f"{about['rows']['train']} train + {about['rows']['dev']} dev" in understood(RunSpec(task=name))


def test_the_line_names_each_guess(tmp_path):
    path = write(tmp_path/"reviews.csv", table(["pos", "neg"] * 25), sep=";", encoding="utf-8-sig")
    line = understood(spec(path, max_train=30))
    for part in ("classification, 2 classes (neg: ", "columns text, label", "30 train + 10 dev rows", "a fifth of the rows, drawn of each class", "';'", "utf-8"): assert part in line


def test_unknown_words_are_said(capsys):
    from lottery_nb.models import load_tokenizer
    english = Dataset.from_dict({"text": ["The committee postponed its quarterly announcement.", "Shareholders were furious about it."]})
    line = tasks.say_unknown(get_task("sst2"), english, load_tokenizer("micro"))
    assert "of the tokens of sst2 are unknown" in line and line in capsys.readouterr().out
    assert tasks.say_unknown(get_task("sst2"), load_data(RunSpec())["train"], load_tokenizer("micro")) == "" and not capsys.readouterr().out


# ---------------------------------------------------------------------------------------------- SQuAD
def squad(folder, *answers, context="the cat saw a dog and a cow"):
    qas = [{"id": f"q{i}", "question": "what ?", "answers": [] if text is None else [{"text": text, "answer_start": start}]} for i, (text, start) in enumerate(answers)]
    folder.mkdir(exist_ok=True)
    for name in ("train", "dev"): (folder/f"{name}-v1.1.json").write_text(json.dumps({"data": [{"paragraphs": [{"context": context, "qas": qas}]}]}))
    return RunSpec(task="squad", data_dir=str(folder))


def test_answers_that_stand_elsewhere(tmp_path):
    with pytest.warns(UserWarning, match="1 answers were not at their answer_start"): found = load_data(squad(tmp_path, ("cat", 4), ("dog", 0)))
    assert [row["label"]["answer_start"] for row in found["train"]] == [[4], [14]]
    for text, start in (("a", 1), ("horse", 4), ("", 300), ("cat", -20)):
        if text == "cat": continue
        with pytest.raises(BadInput, match=r"train-v1.1.json|dev-v1.1.json.*question q1"): load_data(squad(tmp_path, ("cat", 4), (text, start)))
    with pytest.warns(UserWarning, match="1 questions without an answer were left out"): assert len(load_data(squad(tmp_path, ("cat", 4), (None, 0)))["train"]) == 1


# ---------------------------------------------------------------------------------------------- fuzz
LETTERS = [*"abc xyz éß漢", '"', "'", ",", ";", "\t", "\n", "\r\n", "|", "\\", "\u2028", "\x85", "\ufeff"[:0], "0", "NA", "{", "}"]


def made_up(draw, path, form):
    "A table written by pandas; the rows that were written"
    count = draw.randint(2, 12)
    frame = pd.DataFrame({"text": [f"{i} " + "".join(draw.choices(LETTERS, k=draw.randint(0, 12))) for i in range(count)], "label": [draw.choice(["yes", "no"]) for _ in range(count)]})
    if form == ".tsv": frame["text"] = frame["text"].str.replace(r"[\n\r\t]", " ", regex=True)
    if form in (".csv", ".tsv"): frame.to_csv(path, index=False, sep=draw.choice(",;|") if form == ".csv" else "\t", encoding=draw.choice(["utf-8", "utf-8-sig", "utf-16"]))
    elif form == ".parquet": frame.to_parquet(path)
    else: frame.to_json(path, orient="records", lines=form == ".jsonl" or draw.random() < .5, force_ascii=draw.random() < .5)
    return frame.to_dict("records")


def damaged(draw, data):
    "One of the things that happen to files"
    place, other = sorted(draw.randrange(len(data) + 1) for _ in range(2))
    return draw.choice([
        lambda: data[:place], lambda: data[:place] + bytes([draw.randrange(256)]) + data[place + 1:], lambda: data[:place] + data[other:], lambda: data + data[place:other],
        lambda: data[:place] + b"\0" * draw.randint(1, 9) + data[place:], lambda: data + "\ufeff".encode(), lambda: draw.randbytes(draw.randint(0, 300)),
        lambda: data[:place] + draw.choice([b'"', b"\n", b",", b"\t", b"\r", b"{", b"[" * 5000, b"9" * 6000, b'"label"', b"NaN"]) + data[place:], lambda: data[::-1],
        lambda: gzip.compress(data)[:place + 10], lambda: data.replace(b"label", b"text"), lambda: data.replace(b"yes", draw.choice([b"", b"null", b"1e999", b"\xff"])),
    ])()


def counted(path):
    "Rows as an independent reader counts them; None where it cannot"
    data = path.read_bytes()
    form = path.suffix
    if form == ".parquet": return parquet.read_metadata(path).num_rows
    text = data.decode("utf-16" if data[:2] in (b"\xff\xfe", b"\xfe\xff") else "utf-8-sig").replace("\ufeff", "")
    if form == ".json" and text.lstrip().startswith("["): return len(json.loads(text))
    if form in (".json", ".jsonl"): return sum(bool(line.strip()) for line in io.StringIO(text, newline=""))
    lines = [line for line in csv.reader(io.StringIO(text, newline=""), delimiter=read_rows(path).how["delimiter"]) if line]
    return len(lines) - 1


def test_fuzz_tables(tmp_path):
    "Whole, or refused with a sentence"
    draw, seen = random.Random(13), Counter()
    for number in range(700):
        form = draw.choice([".csv", ".tsv", ".jsonl", ".json", ".parquet"])
        path = tmp_path/f"{number}{form}"
        rows = made_up(draw, path, form)
        harm = number % 4 > 0
        if harm: path.write_bytes(damaged(draw, path.read_bytes()))
        try:
            found = read_rows(path).rows
            if not harm: assert found == rows, path
            elif form != ".tsv": assert len(found) == counted(path), path
            with warnings.catch_warnings(): data = load_data(spec(path))
            assert sum(map(len, data.values())) == len(found)
            seen[form, "read"] += 1
        except BadInput as error:
            assert (str(path) in str(error) or "must be" in str(error)) and (harm or "set aside" in str(error) or "different values" in str(error) or "rows if its quotes" in str(error)), error
            seen[form, "refused"] += 1
        path.unlink()
    assert len(seen) == 10 and min(seen.values()) > 10


def test_fuzz_of_the_other_readers(tmp_path):
    "GLUE's tables, SQuAD, label files: whole, or one sentence that names the file"
    draw, seen = random.Random(7), Counter()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for number in range(300):
            folder = tmp_path/str(number)
            (folder/"RTE").mkdir(parents=True)
            for name in ("train", "dev"): (folder/"RTE"/f"{name}.tsv").write_text("index\tsentence1\tsentence2\tlabel\n" + "".join(f"{i}\ta {i}\tb\tentailment\n" for i in range(6)))
            squad(folder/"squad", ("cat", 4), ("dog", 14))
            record = dict.fromkeys(IDENTITY, 1) | {"special": "0", "label": CLASSES[0], "map": pack_map(np.eye(3))}
            (folder/"a.jsonl").write_text((json.dumps(record) + "\n") * 3)
            pd.DataFrame([record] * 3).to_csv(folder/"a.csv", index=False)
            for path, load in ((folder/"RTE"/"train.tsv", lambda: load_data(RunSpec(task="rte", data_dir=str(folder)))["train"]), (folder/"a.jsonl", lambda: read_records(folder/"a.jsonl")),
                               (folder/"squad"/"train-v1.1.json", lambda: load_data(RunSpec(task="squad", data_dir=str(folder)))["train"]), (folder/"a.csv", lambda: read_records(folder/"a.csv"))):
                path.write_bytes(damaged(draw, path.read_bytes()))
                try: seen[path.name, "read"] += len(load()) >= 0
                except BadInput as error:
                    assert str(path) in str(error) or str(path.parent) in str(error), error
                    seen[path.name, "refused"] += 1
    assert len(seen) == 8
