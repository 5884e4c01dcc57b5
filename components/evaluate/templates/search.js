// Shows the questions that contain all words of the search and have the selected outcome.
const box = document.getElementById("search");
const choice = document.getElementById("choice");
const count = document.getElementById("count");
const items = [...document.querySelectorAll("#items > details")].map((element) => ({
  element,
  text: element.textContent.toLowerCase(),
  tags: element.dataset.tags.split(" "),
}));
function show() {
  const words = box.value.toLowerCase().split(/\s+/).filter(Boolean);
  let shown = 0;
  for (const item of items) {
    const matches = (choice.value === "all" || item.tags.includes(choice.value)) && words.every((w) => item.text.includes(w));
    item.element.hidden = !matches;
    shown += matches;
  }
  count.textContent = `${shown} of ${items.length}`;
}
box.addEventListener("input", show);
choice.addEventListener("change", show);
document.getElementById("tools").hidden = false;
show();
