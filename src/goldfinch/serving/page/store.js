// What the browser keeps: conversations in IndexedDB, settings in localStorage.

const request = (action) =>
  new Promise((resolve, reject) => {
    action.onsuccess = () => resolve(action.result);
    action.onerror = () => reject(action.error);
  });

class Conversations {
  #database = Promise.resolve(null);

  /** All of them, the newest first. It fails where the browser keeps nothing, as in some private windows. */
  async open() {
    const opening = indexedDB.open("goldfinch", 1);
    opening.onupgradeneeded = () => opening.result.createObjectStore("conversations", { keyPath: "id" });
    const opened = request(opening);
    this.#database = opened.catch(() => null);
    await opened;
    const all = await this.#run("readonly", (store) => store.getAll());
    return all.sort((a, b) => b.updatedAt - a.updatedAt);
  }

  save(conversation) {
    return this.#run("readwrite", (store) => store.put(conversation));
  }

  remove(id) {
    return this.#run("readwrite", (store) => store.delete(id));
  }

  async #run(mode, action) {
    const database = await this.#database;
    return database && request(action(database.transaction("conversations", mode).objectStore("conversations")));
  }
}

export const conversations = new Conversations();

const SETTINGS = "goldfinch.settings";

/** How tokens are sampled, as the server names it; what is absent is the server's default. */
export const settings = {
  get() {
    try {
      return JSON.parse(localStorage.getItem(SETTINGS)) ?? {};
    } catch {
      return {};
    }
  },
  set: (values) => localStorage.setItem(SETTINGS, JSON.stringify(values)),
};
