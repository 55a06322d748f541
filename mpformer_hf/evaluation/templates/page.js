const pictures = document.querySelectorAll(".pictures figure");
const buttons = document.querySelectorAll(".classes button");
buttons.forEach(button => button.onclick = () => {
  const chosen = button.getAttribute("aria-pressed") === "true" ? "" : button.value;
  buttons.forEach(other => other.setAttribute("aria-pressed", other.value === chosen));
  pictures.forEach(figure => { figure.hidden = chosen && !figure.dataset.classes.split(" ").includes(chosen); });
});
document.querySelectorAll(".sides").forEach(sides => {
  sides.onclick = () => sides.parentElement.classList.toggle("large");
});
