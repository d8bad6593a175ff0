// Runs before the page's script: keeps what goes wrong.
window.problems = [];
window.addEventListener("error", (event) => window.problems.push(String(event.message)));
window.addEventListener("unhandledrejection", (event) => window.problems.push(String(event.reason)));
for (const level of ["error", "warn"]) {
  const original = console[level];
  console[level] = (...args) => { window.problems.push(args.join(" ")); original(...args); };
}
