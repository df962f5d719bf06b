"""The report in headless Chromium: nothing hostile runs, every key works, and it opens quickly."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from chromium import BINARY, Page, chromium
from page_runs import page_index, page_run
from report_runs import ATTACK, SIZE, by_turn, make_run, make_suite, rollouts, write_rows

from cli.report.page import LIMIT, make_page
from cli.report.serve import make_server
from workflows.report.compact import pack_runs

pytestmark = pytest.mark.skipif(BINARY is None, reason="no Chromium on the path: install chromium to run these")
VIEWS = [
    "overview",
    "configuration",
    "changes",
    *(f"trajectories&i=1&view={v}" for v in ("turns", "turns&mask=1&ids=1", "group", "compare")),
]


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Page]:
    with chromium(tmp_path_factory.mktemp("profile")) as opened:
        opened.look("light")
        yield opened


def write_page(path: Path, runs: list[Path]) -> str:
    path.write_text(make_page(pack_runs(runs, 2000, LIMIT), "Sleuth"))
    return path.as_uri()


@pytest.fixture(scope="module")
def address(tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = tmp_path_factory.mktemp("report")
    runs = [make_run(folder / "one"), make_run(folder / "two", config={"seed": 7})]
    return write_page(folder / "page.html", runs)


@pytest.fixture(scope="module")
def hostile(tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = tmp_path_factory.mktemp("hostile")
    return write_page(folder / "page.html", [make_run(folder / "run", ATTACK), make_suite(folder / "suite", ATTACK)])


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("view", VIEWS)
def test_no_text_of_a_run_becomes_markup_or_code(page: Page, hostile: str, view: str, scheme: str) -> None:
    page.look(scheme)
    page.open(f"{hostile}#tab={view}")
    assert page.ask("typeof window.owned") == "undefined"
    assert page.ask("document.title") == "Sleuth"
    assert page.ask("document.querySelectorAll('script').length") == 2
    assert page.ask("document.querySelectorAll('img, iframe, object, link, a:not(.skip)').length") == 0
    assert page.faults() == []
    assert page.requests() == [hostile], "nothing is fetched from anywhere"
    shown = page.ask("document.getElementById('view').textContent")
    assert ATTACK in shown, "the text is there to be read"


def test_the_overview_draws_every_curve_and_the_shares(page: Page, address: str) -> None:
    page.open(f"{address}#tab=overview")
    assert page.ask("[...document.querySelectorAll('.chart figcaption')].map((f) => f.textContent)") == [
        "Dev exact match (greedy)",
        "Reward",
        "KL to the reference (nats)",
        "Seconds per step",
        "one",
        "two",
    ]
    assert page.ask("document.querySelectorAll('.chart')[1].querySelectorAll('path.line').length") == 2
    assert "generate 50 %" in page.ask("document.querySelector('.legend').textContent")
    page.ask("document.querySelector('.chart').focus()")
    page.press("ArrowLeft")
    assert "step 0" in page.ask("document.querySelector('.chart .readout').textContent")


def test_the_configuration_shows_what_differs(page: Page, address: str) -> None:
    page.open(f"{address}#tab=configuration")
    rows = page.ask(
        "[...document.querySelector('section').querySelectorAll('tbody tr')].map((r) => r.cells[0].textContent)"
    )
    assert rows == ["out", "seed"]


def test_keys_move_search_and_change_the_view(page: Page, address: str) -> None:
    page.open(address)
    page.press("3")
    assert page.ask("document.querySelector('[role=tab][aria-selected=true]').textContent") == "Trajectories"
    chosen = "document.querySelector('#list [aria-selected=true]')?.id"
    assert page.ask(chosen) == "row0"
    page.press("j", "j", "k")
    assert page.ask(chosen) == "row1"
    assert page.ask("document.querySelectorAll('#detail pre.information').length") == 1
    page.press("m")
    assert page.ask("[...document.querySelectorAll('.tokens .token')].map((t) => t.className.split(' ')[1])") == [
        *["prompt"] * 3,
        *["policy"] * 2,
        *["environment"] * 3,
        *["policy"] * 2,
    ]
    page.press("i")
    assert page.ask("document.querySelector('.tokens .policy small').textContent") == "10 -0.25"
    page.press("m", "g")
    assert page.ask("[...document.querySelectorAll('.column h3')].map((h) => h.textContent)") == [
        "reward 0, advantage -1",
        "reward 1, advantage +1",
        "reward 0, advantage -1",
        "reward unscored, advantage 0",
    ]
    page.press("/")
    assert page.ask("document.activeElement.id") == "search"
    page.press(*"dev-2")
    page.press("Escape", "c")
    assert page.ask("document.getElementById('count').textContent").startswith("4 of ")
    assert page.ask("[...document.querySelectorAll('.column h3')].map((h) => h.textContent)") == [
        "First: dev, step 0",
        "Last: dev, step 2",
    ]
    assert page.faults() == []


def test_turns_show_what_they_earned_and_tokens_their_advantage(page: Page, tmp_path: Path) -> None:
    run = make_run(tmp_path / "run", steps=1, groups=1)
    write_rows(run / "grpo" / "trajectories" / "step-000000-0.jsonl", by_turn(rollouts(0, 1)))
    page.open(f"{write_page(tmp_path / 'page.html', [run])}#tab=trajectories&i=2")
    earned = "[...document.querySelectorAll('#detail .earned')].map((p) => p.textContent)"
    wanted = ["score 1, advantage -0.25", "score 0, advantage +0.25", "advantage +0.75"]
    assert page.ask(earned) == wanted
    page.press("m")
    assert page.ask(earned) == wanted
    titles = "[...document.querySelectorAll('.tokens .policy')].map((t) => t.title.split('advantage ')[1])"
    assert page.ask(titles) == ["-0.25", "-0.25", "+0.25", "+0.25", "+0.75", "+0.75"]
    assert not page.ask("[...document.querySelectorAll('.tokens .environment')].some((t) => t.title.includes('adv'))")
    page.press("g")
    assert len(page.ask(earned)) == 7
    page.press("m", "t", "k")
    assert page.ask("document.querySelector('#detail .facts').textContent").startswith("reward1 (exact_match 1)")
    assert page.faults() == []


def test_filters_leave_what_was_asked_for(page: Page, address: str) -> None:
    page.open(f"{address}#tab=trajectories")
    rows = 2 * (2 * 3 * SIZE + 14)

    def choose(label: str, value: str) -> int:
        page.ask(
            f"""(() => {{
            const labels = [...document.querySelectorAll('.filters label')];
            const field = labels.find((l) => l.firstChild.textContent === {label!r}).lastChild;
            field.value = {value!r}; field.dispatchEvent(new Event('change')); field.dispatchEvent(new Event('input'));
            }})()"""
        )
        return int(page.ask("document.getElementById('count').textContent.split(' ')[0]"))

    assert choose("Run", "one") == rows // 2
    assert choose("Run", "") == rows
    assert choose("Reward", "unscored") == 4
    assert choose("Reward", "") == rows
    assert choose("Type", "comparison") == 2 * 2 * SIZE
    assert choose("Searches", "2") == 2 * 2
    assert choose("Type", "") == 2 * (2 * 3 + 2 + 2)
    assert choose("Ended by", "turn_budget") == 0
    assert choose("Searches", "") == 2 * (2 * 3 + 2)
    assert choose("Ended by", "") == rows
    assert choose("First to last", "better") == 2 * 2 * 3
    assert choose("First to last", "worse") == 0


def test_everything_can_be_reached_with_the_tab_key_and_has_a_name(page: Page, address: str) -> None:
    page.open(f"{address}#tab=trajectories")
    nameless = page.ask(
        "[...document.querySelectorAll('button, input, select')]"
        ".filter((field) => !(field.textContent.trim() || field.closest('label'))).length"
    )
    assert nameless == 0
    assert page.ask('document.querySelectorAll(\'[tabindex]:not([tabindex="0"]):not([tabindex="-1"])\').length') == 0
    seen = []
    for _ in range(30):
        page.press("Tab")
        seen.append(page.ask("document.activeElement.id || document.activeElement.textContent.slice(0, 20)"))
    assert [name for name in seen if name in ("tab-overview", "search", "list")][:3] == [
        "tab-overview",
        "search",
        "list",
    ]


def test_two_thousand_trajectories_open_in_two_seconds(page: Page, tmp_path: Path) -> None:
    run = make_run(tmp_path / "run")
    for step in range(60):
        write_rows(run / "grpo" / "trajectories" / f"step-{step:06d}-0.jsonl", rollouts(step, 8, noise=20))
    address = write_page(tmp_path / "page.html", [run])
    assert (tmp_path / "page.html").stat().st_size < LIMIT
    taken = []  # seconds from navigation to drawn; where the machine is busy, what the browser worked in them
    for tab in ("trajectories&view=group", "overview", "trajectories"):
        worked = page.cpu_seconds()
        page.open(f"{address}#tab={tab}")
        wall = int(page.ask("document.documentElement.dataset.ready")) / 1000
        taken.append(min(wall, page.cpu_seconds() - worked))
    assert page.ask("document.getElementById('count').textContent").startswith("1934 of 1934")
    assert max(taken) < 2, taken
    page.open(f"{address}#tab=trajectories&i=1500")
    assert page.ask("document.querySelector('#list [aria-selected=true]').id") == "row1500"
    assert page.ask("document.getElementById('list').scrollTop") > 1000, "a row far down is shown when it is linked to"


def test_a_served_page_grows_with_its_run(page: Page, tmp_path: Path) -> None:
    run = make_run(tmp_path / "run", done=False)
    with make_server([run], 2000, "127.0.0.1", 0) as server:
        threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
        page.open(f"http://127.0.0.1:{server.server_port}/#tab=trajectories", "document.getElementById('count')")
        page.press("j")
        before = page.ask("document.getElementById('count').textContent")
        write_rows(run / "grpo" / "trajectories" / "step-000002-0.jsonl", rollouts(2, 3))
        page.wait(f"document.getElementById('count').textContent !== {before!r}")
        assert page.ask("document.querySelector('#list [aria-selected=true]').id") == "row1", "the choice stays"
        assert page.faults() == []
        server.shutdown()


@pytest.fixture(scope="module")
def suites(tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = tmp_path_factory.mktemp("suites")
    later = {"longer, search": ["x", "x", "no", "no"]}
    return write_page(folder / "page.html", [make_suite(folder / "one"), make_suite(folder / "two", answers=later)])


def test_suites_stand_in_one_table_with_the_best_in_bold(page: Page, suites: str) -> None:
    page.open(f"{suites}#tab=overview")
    rows = "[...document.querySelectorAll('section:nth-of-type(2) tbody tr')]"
    assert page.ask(f"{rows}.map((row) => row.children[1].textContent)") == [
        "base, direct",
        "grpo, search, bm25",
        "longer, search",
    ]
    assert page.ask(f"{rows}.map((row) => row.children[4].textContent)") == [
        f"{mean} [10.0, 90.0]" for mean in ("25.0", "50.0", "50.0")
    ]
    assert page.ask(f"{rows}.map((row) => row.querySelectorAll('b').length)") == [0, 3, 3]


def test_suites_of_other_questions_stand_apart(page: Page, tmp_path: Path) -> None:
    runs = [make_suite(tmp_path / "one"), make_suite(tmp_path / "two", answers={"later, search": ["x"] * 4})]
    content = json.loads((runs[1] / "metrics.json").read_text())
    content["suite"]["sets"][0]["sha256"] = "other"
    (runs[1] / "metrics.json").write_text(json.dumps(content))
    page.open(f"{write_page(tmp_path / 'page.html', runs)}#tab=overview")
    tables = "[...document.querySelectorAll('section:nth-of-type(2) table')]"
    assert page.ask(f"{tables}.map((table) => table.querySelectorAll('tbody tr').length)") == [2, 1]


def test_changes_show_both_trajectories(page: Page, suites: str) -> None:
    page.open(f"{suites}#tab=changes")
    assert page.ask("[...document.querySelectorAll('select')].map((s) => s.selectedOptions[0].textContent)") == [
        "one: base, direct",
        "two: longer, search",
    ]
    said = page.ask("document.getElementById('paired').textContent")
    assert "8 questions: EM 0.250" in said and "difference +0.25" in said and "McNemar" in said
    ways = "[...document.querySelectorAll('[id^=way-]')].map((b) => b.textContent)"
    assert page.ask(ways) == ["wrong → right 2", "right → wrong 0", "right in both 2", "wrong in both 4"]
    answers = (
        "[...document.querySelectorAll('#detail .column pre:last-of-type .answer:not(.tag)')].map((n) => n.textContent)"
    )
    assert page.ask(answers) == ["no", "x"]
    page.press("j")
    assert page.ask("document.querySelector('#detail h2').textContent").startswith("Question b1")
    assert "q=5" in page.ask("location.hash")
    second = "document.querySelectorAll('select')[1]"
    page.ask(f"{second}.value = '1'; {second}.dispatchEvent(new Event('change'))")
    page.ask("document.getElementById('way-worse').click()")
    assert page.ask(ways) == ["wrong → right 4", "right → wrong 2", "right in both 0", "wrong in both 2"]
    assert page.ask(answers) == ["x", "no"]
    page.press("m")
    assert page.ask("document.querySelectorAll('#detail .token').length") > 0
    assert page.faults() == []


def test_pages_are_shown_beside_their_hits_and_larger_when_looked_at(page: Page, tmp_path: Path) -> None:
    run = page_run(tmp_path / "run", page_index(tmp_path / "index"), tmp_path / "index")
    page.open(f"{write_page(tmp_path / 'page.html', [run])}#tab=trajectories&i=0&view=turns")
    page.wait("[...document.images].length === 3 && [...document.images].every((image) => image.complete)")
    assert page.ask("[...document.images].map((image) => image.naturalWidth)") == [240] * 3
    assert page.ask("document.images[0].alt") == "page oslo" and page.faults() == []
    before = page.ask("document.images[0].offsetHeight")
    page.call("Emulation.setFocusEmulationEnabled", enabled=True)
    page.ask("document.images[0].focus()")
    assert page.ask("document.images[0].offsetHeight") > 2 * before
