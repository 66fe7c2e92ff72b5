// Dark or light, before anything is painted: as the system has it, unless the reader chose.
(() => {
  const KEY = "goldfinch.theme";
  const root = document.documentElement;
  const chosen = localStorage.getItem(KEY);
  if (chosen === "dark" || chosen === "light") root.dataset.theme = chosen;
  globalThis.toggleTheme = () => {
    const theme = root.dataset.theme ?? (matchMedia("(prefers-color-scheme: dark)").matches ? "dark" : "light");
    root.dataset.theme = theme === "dark" ? "light" : "dark";
    localStorage.setItem(KEY, root.dataset.theme);
  };
})();
