const pictures = document.querySelectorAll(".pictures figure");
const buttons = document.querySelectorAll(".classes button");
buttons.forEach(button => button.onclick = () => {
  const chosen = button.getAttribute("aria-pressed") === "true" ? "" : button.value;
  buttons.forEach(other => other.setAttribute("aria-pressed", other.value === chosen));
  pictures.forEach(figure => { figure.hidden = chosen && !figure.dataset.classes.split(" ").includes(chosen); });
});
document.querySelectorAll(".sides").forEach(sides => {
  sides.tabIndex = 0;
  sides.setAttribute("role", "button");
  sides.setAttribute("aria-label", "enlarge");
  sides.onclick = () => sides.parentElement.classList.toggle("large");
  sides.onkeydown = event => {
    if (event.key !== "Enter" && event.key !== " ") return;
    event.preventDefault();
    sides.click();
  };
});
