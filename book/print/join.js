/* Join the pages of the site into one document, in place of the page that is open. */
async (css) => {
  const site = location.origin + "/";
  const anchor = (path) => path.replace(/^\//, "").replace(/\.html$/, "").replaceAll("/", "-");
  const load = async (path) => new DOMParser().parseFromString(await (await fetch(path)).text(), "text/html");
  const element = (name, properties, ...children) => {
    const made = Object.assign(document.createElement(name), properties);
    made.append(...children);
    return made;
  };

  const contents = (await load("/index.html")).querySelector("nav.bd-links");
  const entries = [...contents.querySelectorAll("p.caption, a.reference.internal")];
  const paths = new Set(["/index.html"]);
  for (const entry of entries) {
    const href = entry.getAttribute("href");
    if (href && !href.startsWith("#")) paths.add(new URL(href, site).pathname);
  }

  const readArticle = async (path) => {
    const article = (await load(path)).querySelector("article.bd-article");
    for (const extra of article.querySelectorAll(".headerlink, script, summary")) extra.remove();
    for (const code of article.querySelectorAll("details.above-input")) code.remove(); // how a figure is drawn
    for (const fold of article.querySelectorAll("details")) fold.replaceWith(...fold.childNodes);
    for (const named of article.querySelectorAll("[id]")) named.id = `${anchor(path)}--${named.id}`;
    for (const image of article.querySelectorAll("img")) {
      image.loading = "eager";
      image.src = new URL(image.getAttribute("src"), site + path).href;
    }
    for (const link of article.querySelectorAll("a[href]")) {
      const target = new URL(link.getAttribute("href"), site + path.slice(1));
      if (target.origin !== location.origin) continue;
      const place = decodeURIComponent(target.hash.slice(1));
      if (paths.has(target.pathname)) link.href = `#${anchor(target.pathname)}${place ? `--${place}` : ""}`;
      else link.removeAttribute("href"); // a file that is not part of the printed book
    }
    article.id = anchor(path);
    return article;
  };

  const main = document.createElement("main");
  const title = contents.querySelector("a").textContent.trim();
  const list = element("nav", { className: "contents" }, element("h1", { textContent: "Contents" }));
  main.append(element("section", { className: "cover" }, element("h1", { textContent: title })), list);
  const enter = (id, text, className) =>
    list.append(element("a", { href: `#${id}`, className }, text, document.createElement("span")));

  const add = async (path) => {
    const article = await readArticle(path);
    main.append(article);
    enter(article.id, article.querySelector("h1").textContent.trim(), "page");
    if (/\/part\d_/.test(path)) {
      for (const heading of article.querySelectorAll("h2")) {
        if (/^(What you will|Exercises|Takeaways)/.test(heading.textContent)) continue; // every chapter has them
        enter(heading.closest("section").id, heading.textContent.trim(), "section");
      }
    }
  };

  await add("/index.html");
  const added = new Set(["/", "/index.html"]);
  for (const entry of entries) {
    if (entry.matches("p")) {
      const caption = entry.textContent.trim();
      list.append(element("p", { textContent: caption }));
      main.append(element("section", { className: "part" }, element("h1", { textContent: caption })));
      continue;
    }
    const path = new URL(entry.getAttribute("href"), site).pathname;
    if (!added.has(path)) await add(path);
    added.add(path);
  }

  document.documentElement.dataset.theme = "light";
  document.head.append(element("style", { textContent: css }));
  document.body.replaceChildren(main);
  await MathJax.startup.promise;
  await MathJax.typesetPromise();
  for (const hidden of main.querySelectorAll("mjx-assistive-mml")) hidden.remove(); // or printing takes twice as long
  for (const box of main.querySelectorAll("div.math")) {
    const formula = box.querySelector("mjx-container");
    if (!formula) continue;
    const parts = [...formula.querySelectorAll("mjx-math")].map((part) => part.getBoundingClientRect().width);
    const room = box.clientWidth - (box.querySelector(".eqno")?.offsetWidth ?? 0) - 8;
    if (Math.max(...parts) > room) formula.style.fontSize = `${Math.floor((100 * room) / Math.max(...parts))}%`;
  }
  await Promise.all([...document.images].map((image) => image.decode().catch(() => null)));
  return title;
};
