// A click on a heading sorts the dictionaries within each site; a second click turns the order round.
document.querySelectorAll("#dictionaries thead th").forEach((heading, column) => {
  heading.tabIndex = 0;
  heading.classList.add("sorts");
  const sort = () => {
    const down = heading.getAttribute("aria-sort") === "ascending";
    heading.parentElement.querySelectorAll("th").forEach((other) => other.removeAttribute("aria-sort"));
    heading.setAttribute("aria-sort", down ? "descending" : "ascending");
    const value = (row) => column ? parseFloat(row.children[column].dataset.order) : row.children[0].textContent;
    const compare = (a, b) => column ? a - b : a.localeCompare(b, undefined, {numeric: true});
    document.querySelectorAll("#dictionaries tbody").forEach((body) => {
      const rows = [...body.querySelectorAll("tr.of")];
      rows.sort((a, b) => {
        const [x, y] = [value(a), value(b)];
        if (Number.isNaN(x) || Number.isNaN(y)) return Number.isNaN(x) - Number.isNaN(y);
        return down ? compare(y, x) : compare(x, y);
      });
      body.append(...rows);
    });
  };
  heading.addEventListener("click", sort);
  heading.addEventListener("keydown", (event) => { if (event.key === "Enter") sort(); });
});
