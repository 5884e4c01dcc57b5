"""The ask page in a real browser."""

from pathlib import Path
from typing import Any

import pytest

from tests.serve.browser import chromium, needs_chromium, run_in_page
from tests.serve.pods import ANSWER, TOKEN, RunningPod, needs_ollama, published

pytestmark = [needs_ollama, needs_chromium]
CONNECT = f"""
  document.getElementById("token").value = "{TOKEN}";
  await connect();
  document.getElementById("question").value = "x";
  const fetched = window.fetch;
  let asked = 0;
  window.fetch = (path, options) => {{ asked += path === "/ask"; return fetched(path, options); }};
  const answered = async () => {{ while ($("send").disabled) await new Promise(done => setTimeout(done, 20)); }};
"""


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Any:
    folder: Path = tmp_path_factory.mktemp("page")
    numbers = ["SELECT", " 9007199254740993", ", 9e999", ", 4.5"]
    uris = [published(folder, "1"), published(folder, "1", numbers, gold=None, name="numbers")]
    models = [{"name": name, "uri": uri, "threshold": 0} for name, uri in zip(("hotel", "numbers"), uris, strict=True)]
    pod = RunningPod(folder / "pod", models)
    with pod.ready(), chromium(folder / "profile") as browser:
        yield lambda script: run_in_page(browser, pod.endpoint, CONNECT + script)


def test_ctrl_enter_asks_once(page: Any) -> None:
    press = 'new KeyboardEvent("keydown", {key: "Enter", ctrlKey: true, bubbles: true})'
    script = f"""
      $("question").dispatchEvent({press}); $("question").dispatchEvent({press});
      await answered();
      return [asked, $("sql").textContent, $("error").textContent];
    """
    assert page(script) == [1, ANSWER, ""]


def test_numbers_are_shown_without_loss_of_precision(page: Any) -> None:
    script = """
      $("chosen").value = "numbers";
      await ask(new Event("submit"));
      return [...$("rows").rows[1].cells].map(cell => [cell.textContent, cell.className]);
    """
    assert page(script) == [["9007199254740993", ""], ["NULL", "null"], ["4.5", "number"]]


def test_repairs_of_names_are_shown_as_text(page: Any) -> None:
    script = """
      const repairs = [{kind: "added_join", message: "join added: <b>city</b> ON a.b = c.d"}];
      const sql = JSON.stringify({sql: "SELECT 1", answered: "SELECT 2", repairs});
      window.fetch = async () => new Response(sql + "\\n");
      await ask(new Event("submit"));
      return [$("repairs").hidden, $("repairs").textContent, $("repairs").title];
    """
    repaired = "Repaired, check it: join added: <b>city</b> ON a.b = c.d"
    assert page(script) == [False, repaired, "The model answered: SELECT 2"]


def test_an_incomplete_answer_is_an_error(page: Any) -> None:
    script = """
      window.fetch = async () => new Response('{"text": "SELECT"}\\n{"sql": "SELECT 1"}\\n');
      await ask(new Event("submit"));
      return $("error").textContent;
    """
    assert "incomplete" in page(script)
