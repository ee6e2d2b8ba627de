// What the pages of the book do: sliders, terms, figures at full width. The only script of our own that a page loads;
// in the output of a notebook's cell, where no page is around it, the same text stands beside each slider.
(() => {
  if (window.subspaceBook) return;
  window.subspaceBook = true;

  // Sliders over pictures show the one that is chosen; those over sparse formats mark the entry that is chosen.
  document.addEventListener('input', ({target}) => {
    const slider = target.closest('.subspace-slider'), format = target.closest('.subspace-formats details');
    if (!slider && !format) return;
    let said;
    if (slider) {
      const frames = slider.querySelectorAll('img');
      frames.forEach((frame, i) => { frame.hidden = i != target.value; });
      said = frames[target.value].dataset.label;
    } else {
      format.querySelectorAll('[data-entries]').forEach(cell => {
        cell.classList.toggle('marked', cell.dataset.entries.split(' ').includes(target.value));
      });
      said = target.dataset.say.split('|')[target.value];
    }
    (slider || format).querySelector('output').value = said;
    target.setAttribute('aria-valuetext', said);
  });

  // A figure opens at full width by a click or Enter; Escape or a click closes it.
  const enlarge = image => {
    const dialog = document.body.appendChild(document.createElement('dialog'));
    dialog.className = 'subspace-large';
    dialog.setAttribute('aria-label', image.alt);
    const button = dialog.appendChild(document.createElement('button'));
    button.textContent = 'Close';
    const large = dialog.appendChild(image.cloneNode());
    ['id', 'role', 'tabindex', 'width', 'height', 'style', 'aria-label'].forEach(name => large.removeAttribute(name));
    dialog.addEventListener('click', () => dialog.close());
    dialog.addEventListener('close', () => { dialog.remove(); image.focus(); });
    dialog.showModal();
  };

  // The first time that a page uses a word of the page Notation, resting on it (or Tab) shows what it means.
  const explain = (article, terms) => {
    const walker = document.createTreeWalker(article, NodeFilter.SHOW_TEXT, node =>
      node.parentElement.closest('p, li') && !node.parentElement.closest('a, code, pre, summary, button, .math, .subspace-lab, figure, dl, table')
        ? NodeFilter.FILTER_ACCEPT : NodeFilter.FILTER_REJECT);
    const texts = [];
    while (walker.nextNode()) texts.push(walker.currentNode);
    terms.forEach(([term, meaning], i) => {
      const word = new RegExp('(?<![\\w-])' + term + '(?![\\w-])', 'i');
      const at = texts.findIndex(text => word.test(text.data));
      if (at < 0) return;
      const found = texts[at].splitText(word.exec(texts[at].data).index), rest = found.splitText(term.length);
      const mark = document.createElement('span');
      mark.className = 'subspace-term';
      mark.tabIndex = 0;
      mark.setAttribute('role', 'term');
      mark.setAttribute('aria-describedby', `subspace-term-${i}`);
      found.replaceWith(mark);
      mark.append(found);
      const tip = mark.appendChild(document.createElement('span'));
      tip.id = `subspace-term-${i}`;
      tip.setAttribute('role', 'tooltip');
      tip.textContent = meaning;
      texts.splice(at + 1, 0, rest);
    });
  };

  document.addEventListener('DOMContentLoaded', () => {
    const article = document.querySelector('article.bd-article');
    if (!article) return;
    article.querySelectorAll('figure img').forEach(image => {
      if (image.closest('a')) return;
      image.tabIndex = 0;
      image.setAttribute('role', 'button');
      image.setAttribute('aria-label', `${image.alt} Open at full width.`);
      image.addEventListener('click', () => enlarge(image));
      image.addEventListener('keydown', event => {
        if (event.key != 'Enter') return;
        event.preventDefault(); // or the same key would press the button that closes
        enlarge(image);
      });
    });
    if (window.subspaceTerms && !document.querySelector('#notation')) explain(article, window.subspaceTerms);
  });
  // A formula that is wider than the page can be moved by keyboard; all others are no tab stops.
  const reachFormulas = () => document.querySelectorAll('mjx-container[display="true"]').forEach(formula => {
    if (formula.scrollWidth > formula.clientWidth) formula.tabIndex = 0;
    else formula.removeAttribute('tabindex');
  });
  window.addEventListener('load', () => window.MathJax?.startup?.promise?.then(reachFormulas));
  document.addEventListener('toggle', reachFormulas, true);
  // On paper answers are open, and the code of figures is left out; afterwards all is as it was.
  let opened = [];
  window.addEventListener('beforeprint', () => {
    opened = [...document.querySelectorAll('details:not([open])')].filter(d => !d.closest('.tag_hide-input, .tag_setup'))
      .map(details => ({details, name: details.getAttribute('name')}));
    opened.forEach(({details}) => { details.removeAttribute('name'); details.open = true; }); // of one name only one may be open
  });
  window.addEventListener('afterprint', () => opened.splice(0).forEach(({details, name}) => {
    details.open = false;
    if (name) details.setAttribute('name', name);
  }));

  document.addEventListener('keydown', event => { // Escape puts a meaning away, as a reader who magnifies the page needs
    if (event.key == 'Escape' && document.activeElement.matches('.subspace-term')) document.activeElement.blur();
  });
})();
