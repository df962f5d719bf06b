"""The report without a browser: what is in the page, what is left out, and that nothing in it can run."""

from __future__ import annotations

import base64
import hashlib
import io
import json
import re
import threading
import urllib.error
import urllib.request
from dataclasses import replace
from http.server import ThreadingHTTPServer
from pathlib import Path

import pytest
from page_runs import page_index, page_run
from PIL import Image as Pillow
from report_runs import ATTACK, SIZE, by_turn, make_run, rollouts, write_rows

import cli.report.page
from cli.main import main
from cli.report.page import LIMIT, SCRIPTS, make_page
from cli.report.serve import make_server
from retrieval.store import IMAGES
from sleuth.errors import ArtifactError
from sleuth.trajectories import close_trajectories
from sleuth.types import Passage
from workflows.report.collect import read_run, run_names
from workflows.report.compact import pack, pack_runs, unpack
from workflows.report.sample import choose, thin

ASSETS = Path(cli.report.page.__file__).parent / "assets"


def embedded(page: str) -> dict:
    (data,) = re.findall(r'<script id="data"[^>]*>([^<]*)</script>', page)
    return unpack(base64.b64decode(data))


def test_the_page_holds_every_trajectory_with_group_step_and_advantage(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run")
    data = unpack(pack_runs([run], 2000, LIMIT))
    names = [source["name"] for source in data["sources"]]
    assert names == ["rollouts", "test, warmstart-search", "dev, step 0", "dev, step 2", "test, grpo-search"]
    assert len(data["rows"]) == 2 * 3 * SIZE + 2 * 4 + 2 * 3
    assert data["left_out"] == []
    first = data["rows"][1]
    assert (first["step"], first["g"], first["a"], first["w"]) == (0, 0, 1, 1)
    assert first["t"][0]["k"] == "search"
    assert first["t"][0]["h"] == [[0, 1.5, 1], [1, 0.5, 0]]
    assert first["seg"][1:3] == [[1, [10, 11], [-250, -1500]], [2, [7, 8, 9]]]
    assert data["tables"]["prompts"][first["seg"][0][1]] == [5, 6, 1]
    assert data["runs"][0]["series"]["dev/em"] == [[0, 0], [2, 1]]
    assert data["runs"][0]["finished"]


def test_the_page_holds_what_each_turn_earned_and_its_advantage(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run", steps=1, groups=1)
    write_rows(run / "grpo" / "trajectories" / "step-000000-0.jsonl", by_turn(rollouts(0, 1)))
    rows = unpack(pack_runs([run], 2000, LIMIT))["rows"][:SIZE]
    assert [row.get("ts") for row in rows] == [[None], [1, None], [1, 0, None], [None]]
    assert [row.get("as") for row in rows] == [None, [-0.25, 0.25], [-0.25, 0.25, 0.75], None]
    older = unpack(pack_runs([make_run(tmp_path / "older")], 2000, LIMIT))["rows"]
    assert not any("ts" in row or "as" in row for row in older)


def test_a_closed_run_and_a_growing_one_show_the_same(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run")
    growing = unpack(pack_runs([run], 2000, LIMIT))
    for folder in [run / "grpo" / "trajectories", *(run / "grpo" / "dev").iterdir(), *(run / "evaluation").iterdir()]:
        assert close_trajectories(folder)
    assert unpack(pack_runs([run], 2000, LIMIT)) == growing


def test_a_run_that_is_going_on_is_read_as_far_as_it_is(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run", done=False)
    with (run / "metrics.jsonl").open("a") as file:
        file.write('{"step": 3, "rew')
    torn = run / "evaluation" / "warmstart-search" / "trajectories.jsonl"
    torn.write_text(torn.read_text()[:-40])
    data = unpack(pack_runs([run], 2000, LIMIT))
    assert not data["runs"][0]["finished"]
    assert data["runs"][0]["series"]["reward"] == [[1, 0], [2, 0.1]]
    assert next(s for s in data["sources"] if s["name"] == "test, warmstart-search")["shown"] == 2


def test_the_page_knows_which_turns_begin_inside_a_thought(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run")
    (row, *_) = rollouts(0, 1)
    first, *rest = row.trajectory.turns
    opened = replace(row, trajectory=replace(row.trajectory, turns=(replace(first, thinking=True), *rest)))
    write_rows(run / "evaluation" / "warmstart-search" / "trajectories.jsonl", [row, opened])
    data = unpack(pack_runs([run], 2000, LIMIT))
    shown = [turns for r in data["rows"] if (turns := r["t"]) and any("i" in turn for turn in turns)]
    assert [["i" in turn for turn in turns] for turns in shown] == [[True, *(False for _ in rest)]]


def test_what_is_damaged_is_skipped_and_said(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run")
    file = run / "grpo" / "trajectories" / "step-000001-0.jsonl"
    lines = file.read_text().splitlines()
    lines[1], lines[4] = lines[1][:50], '{"reward": 1}'
    file.write_text("\n".join(lines) + "\n")
    closed = run / "evaluation" / "warmstart-search"
    close_trajectories(closed)
    (closed / "trajectories.parquet").write_bytes(b"PAR1 no more")
    data = unpack(pack_runs([run], 2000, LIMIT))
    assert data["sources"][0]["shown"] == 2 * 3 * SIZE - 2
    rows, table = data["left_out"]
    assert rows == "2 damaged rows of rollouts, step-000001-0.jsonl, the first in line 2"
    assert table.startswith("the rest of test, warmstart-search, trajectories.parquet, which cannot be read")


def test_rows_of_an_older_run_take_step_and_group_from_where_they_stand(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run")
    file = run / "grpo" / "trajectories" / "step-000001-0.jsonl"
    rows = [json.loads(line) for line in file.read_text().splitlines()]
    file.write_text("".join(json.dumps({k: v for k, v in row.items() if k != "origin"}) + "\n" for row in rows))
    shown = [row for row in unpack(pack_runs([run], 2000, LIMIT))["rows"] if row.get("step") == 1]
    assert [row["g"] for row in shown] == [g for g in range(3) for _ in range(SIZE)]
    assert {row["a"] for row in shown} == {None}


def test_what_does_not_fit_is_left_out_evenly_and_said(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run", steps=20, groups=5)
    data = unpack(pack_runs([run], 100, LIMIT))
    assert len(data["rows"]) <= 100
    rolled = [row for row in data["rows"] if "step" in row]
    groups: dict[tuple[int, int], int] = {}
    for row in rolled:
        groups[row["step"], row["g"]] = groups.get((row["step"], row["g"]), 0) + 1
    assert set(groups.values()) == {SIZE}, "groups stay whole"
    assert min(groups)[0] == 0 and max(groups)[0] == 19, "from the first step to the last"
    (said,) = data["left_out"]
    assert said.startswith(f"{len(data['rows'])} of {20 * 5 * SIZE + 14} trajectories")


def test_a_page_that_would_be_too_large_loses_tokens_first_and_then_rows(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run")
    for step in range(15):
        write_rows(run / "grpo" / "trajectories" / f"step-{step:06d}-0.jsonl", rollouts(step, 6, noise=60))
    whole = pack_runs([run], 2000, LIMIT)
    less = pack_runs([run], 2000, len(whole) * 3 // 4)
    least = pack_runs([run], 2000, len(whole) // 4)
    assert len(less) <= len(whole) * 3 // 4 and len(least) <= len(whole) // 4
    assert len(unpack(less)["rows"]) == len(unpack(whole)["rows"])
    assert "token ids and log-probs are kept for" in unpack(less)["left_out"][0]
    assert len(unpack(least)["rows"]) < len(unpack(whole)["rows"])
    assert len(unpack(least)["left_out"]) == 2


@pytest.mark.parametrize("capacity", [0, 1, 3, 4, 10, 39, 40, 1000])
def test_thinning_keeps_first_and_last_and_never_too_many(capacity: int) -> None:
    groups = [[row] * 4 for row in range(10)]
    kept, total = thin(groups, capacity)
    assert total == 40
    assert sum(map(len, kept)) <= capacity
    if capacity >= 8:
        assert kept[0] == groups[0] and kept[-1] == groups[-1]
    if capacity >= 40:
        assert kept == groups


def test_several_runs_share_the_room_and_are_told_apart(tmp_path: Path) -> None:
    runs = [make_run(tmp_path / side / "run", config={"seed": seed}) for seed, side in enumerate("ab")]
    assert run_names(runs) == ["a/run", "b/run"]
    data = unpack(pack_runs(runs, 60, LIMIT))
    assert [run["config"]["seed"] for run in data["runs"]] == [0, 1]
    shares = [sum(s["shown"] for s in data["sources"] if s["run"] == i) for i in range(2)]
    assert shares[0] == shares[1] > 0 and sum(shares) <= 60
    with pytest.raises(ArtifactError, match="twice"):
        run_names([runs[0], runs[0]])


def test_the_runs_own_folder_is_no_difference_between_runs(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run", config={"retriever": {"index": f"{tmp_path}/run/index"}})
    assert unpack(pack_runs([run], 0, LIMIT))["runs"][0]["config"]["retriever.index"] == "{out}/index"


def test_a_runs_folder_is_replaced_where_a_path_begins_with_it_only(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    config = {"a": "layer1", "b": "r1/world", "c": ["r1", "r12", {"d": "r1/x"}]}
    shown = unpack(pack_runs([make_run(Path("r1"), config=config)], 2000, LIMIT))["runs"][0]["config"]
    assert (shown["a"], shown["b"], shown["out"]) == ("layer1", "{out}/world", "r1")
    assert json.loads(shown["c"]) == ["{out}", "r12", {"d": "{out}/x"}]


def test_hostile_text_is_nowhere_in_the_page_as_it_is(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run", ATTACK)
    packed = pack_runs([run], 2000, LIMIT)
    page = make_page(packed, f"Sleuth: {ATTACK}")
    assert ATTACK not in page and "owned" not in page.replace(
        "window.owned=1;document.title=&#x27;owned&#x27;", ""
    ).replace("window.owned=2", "")
    assert "<img" not in page
    assert page.count("<script") == 2 and page.count("</script>") == 2
    text = json.dumps(embedded(page))
    for place in ("question", "turn", "observation"):
        assert text.count("window.owned=1") > 10, place
    assert embedded(page)["rows"][1]["t"][0]["o"].count(ATTACK) == 1, "and in the data it is whole"


def test_the_policy_of_the_page_allows_its_own_script_and_style_and_nothing_else(tmp_path: Path) -> None:
    page = make_page(b"", "x")
    (policy,) = re.findall(r'http-equiv="Content-Security-Policy" content="([^"]*)"', page)
    script = page[page.rindex("<script>") + 8 : page.rindex("</script>")]
    style = page[page.index("<style>") + 7 : page.index("</style>")]
    rules = dict(rule.strip().split(" ", 1) for rule in policy.split(";"))
    for name, text in (("script-src", script), ("style-src", style)):
        digest = base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()
        assert rules[name] == f"'sha256-{digest}'"
    assert rules["default-src"] == "'none'" and rules["connect-src"] == "'none'"


def test_the_script_has_no_way_to_turn_text_into_markup_or_code() -> None:
    assert sorted(p.name for p in ASSETS.glob("*.js")) == sorted(SCRIPTS)
    ways = r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|createContextualFragment|DOMParser|srcdoc"
    ways += r"|eval\(|Function\(|import\("
    for path in ASSETS.glob("*.js"):
        text = path.read_text()
        assert not re.search(ways, text), path.name
        assert not re.search(r"https?://(?!www\.w3\.org/2000/svg)", text), path.name
        assert len(text.splitlines()) < 400
    assert not re.search(r"url\(|@import", (ASSETS / "style.css").read_text())


def luminance(colour: str) -> float:
    parts = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in parts]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def contrast(a: str, b: str) -> float:
    """WCAG 2.2, contrast ratio."""
    high, low = sorted((luminance(a), luminance(b)), reverse=True)
    return (high + 0.05) / (low + 0.05)


@pytest.mark.parametrize("dark", [False, True])
def test_text_is_readable_in_light_and_dark(dark: bool) -> None:
    blocks = re.findall(r":root \{(.*?)\}", (ASSETS / "style.css").read_text(), re.DOTALL)
    colours = dict(re.findall(r"--([\w-]+): (#[0-9a-f]{6})", blocks[dark]))
    grounds = [colours[name] for name in ("ground", "panel", "hover")]
    inks = [
        "ink",
        "quiet",
        "accent",
        "think",
        "search",
        "answer",
        "information",
        "good",
        "bad",
        "gold",
        *(f"c{i}" for i in range(8)),
    ]
    pairs = [(ink, ground) for ink in inks for ground in grounds]
    pairs += [("information", colours["information-ground"]), ("ink", colours["policy-ground"])]
    pairs += [("ink", colours["environment-ground"]), ("quiet", colours["policy-ground"])]
    low = {(ink, ground): round(contrast(colours[ink], ground), 2) for ink, ground in pairs}
    assert {pair: ratio for pair, ratio in low.items() if ratio < 4.5} == {}


def test_the_command_writes_a_page_under_the_limit_for_two_thousand_trajectories(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = make_run(tmp_path / "run", steps=60, groups=9)
    main_quietly(["report", str(run), "--out", str(tmp_path / "page.html")])
    page = (tmp_path / "page.html").read_text()
    assert len(page.encode()) < LIMIT
    assert len(embedded(page)["rows"]) > 1900
    assert "page.html" in capsys.readouterr().err


def main_quietly(arguments: list[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main(arguments)
    assert ended.value.code == 0


def test_no_run_is_said_in_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["report", str(tmp_path)])
    assert ended.value.code == 2
    assert "is not a run folder" in capsys.readouterr().err


@pytest.fixture
def server(tmp_path: Path):
    run = make_run(tmp_path / "run", done=False)
    with make_server([run], 2000, "127.0.0.1", 0) as served:
        threading.Thread(target=served.serve_forever, args=(0.01,), daemon=True).start()
        yield served, run
        served.shutdown()


def get(server: ThreadingHTTPServer, path: str, **headers: str) -> tuple[int, bytes, str | None]:
    request = urllib.request.Request(f"http://127.0.0.1:{server.server_port}{path}", headers=headers)
    try:
        with urllib.request.urlopen(request, timeout=10) as answer:
            return answer.status, answer.read(), answer.headers["ETag"]
    except urllib.error.HTTPError as error:
        return error.code, error.read(), error.headers["ETag"]


def test_a_served_report_follows_the_run(server) -> None:
    served, run = server
    status, page, _ = get(served, "/")
    assert status == 200 and b"connect-src 'self'" in page and b'data-live="yes"' in page
    status, data, tag = get(served, "/data")
    before = len(unpack(data)["rows"])
    assert status == 200 and tag
    assert get(served, "/data", **{"If-None-Match": tag})[0] == 304
    write_rows(run / "grpo" / "trajectories" / "step-000002-0.jsonl", rollouts(2, 3))
    status, data, changed = get(served, "/data", **{"If-None-Match": tag})
    assert status == 200 and changed != tag
    assert len(unpack(data)["rows"]) == before + 3 * SIZE


def test_a_server_answers_two_addresses_under_its_own_name_only(server) -> None:
    served, _ = server
    assert get(served, "/../../etc/passwd")[0] == 404
    assert get(served, "/data", Host="rebound.example")[0] == 403
    assert get(served, "/data", Host=f"localhost:{served.server_port}")[0] == 200


def test_budget_is_kept_whatever_the_share_of_each_source(tmp_path: Path) -> None:
    run = read_run(make_run(tmp_path / "run", steps=5), "run")
    for limit in (0, 1, 5, 20, 60, 500):
        samples = choose([run], limit)
        assert sum(sample.shown for sample in samples) <= max(limit, 0)
        assert pack([run], samples, LIMIT)


def test_pages_among_the_hits_have_thumbnails(tmp_path: Path) -> None:
    passages = page_index(tmp_path / "index")
    run = page_run(tmp_path / "run", [*passages, Passage("plain", "Plain", "text")], tmp_path / "index")
    data = unpack(pack_runs([run], 2000, LIMIT))
    tables = data["tables"]
    assert data["left_out"] == [] and len(tables["passages"]) == 4 and sorted(tables["pages"]) == ["0", "1", "2"]
    for thumbnail in tables["pages"].values():
        with Pillow.open(io.BytesIO(base64.b64decode(thumbnail))) as picture:
            assert picture.format == "JPEG" and picture.size == (240, 320)
    one = len(tables["pages"]["0"])
    small = unpack(pack_runs([run], 2000, 3 * (one + one // 2)))
    assert len(small["tables"]["pages"]) == 1
    assert "2 pages have no thumbnail: left out to keep the page small" in small["left_out"]


def test_pages_whose_index_is_gone_or_another_have_none_and_it_is_said(tmp_path: Path) -> None:
    passages = page_index(tmp_path / "index")
    run = page_run(tmp_path / "run", passages, tmp_path / "index")
    other = [replace(passage, image=replace(passage.image, sha256="0" * 64)) for passage in passages[:1]]
    for case in (
        page_run(tmp_path / "gone", passages, tmp_path / "nowhere"),
        page_run(tmp_path / "other", other, tmp_path / "index"),
    ):
        data = unpack(pack_runs([case], 2000, LIMIT))
        assert data["tables"]["pages"] == {}
        (said,) = data["left_out"]
        assert "no thumbnail: no index that the runs name has their pictures" in said
    images = tmp_path / "index" / IMAGES
    images.write_bytes(b"0" * images.stat().st_size)
    assert "3 pages have no thumbnail: their pictures are damaged" in unpack(pack_runs([run], 2000, LIMIT))["left_out"]
