// One article of each .pages at a time, with buttons; without this script all of them are on the page.
for (const box of document.querySelectorAll(".pages")) {
  const articles = [...box.children];
  if (articles.length < 2) continue;
  const turner = document.createElement("div");
  const place = document.createElement("span");
  let current = 0;
  const show = (n) => {
    current = (n + articles.length) % articles.length;
    articles.forEach((article, i) => article.classList.toggle("hidden", i !== current));
    place.textContent = `${current + 1} of ${articles.length}`;
  };
  const button = (label, name, move) => {
    const made = document.createElement("button");
    made.textContent = label;
    made.setAttribute("aria-label", name);
    made.addEventListener("click", () => show(current + move));
    return made;
  };
  turner.className = "turner";
  place.setAttribute("aria-live", "polite");
  turner.append(button("‹", "previous", -1), place, button("›", "next", 1));
  box.prepend(turner);
  show(0);
}
