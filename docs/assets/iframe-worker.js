// Search runs in a worker, which browsers refuse to a page that was opened from disk: there a frame
// without content takes the worker's place.
if (location.protocol === "file:") {
  window.IFrameWorker = class extends EventTarget {
    constructor(address) {
      super()
      this.waiting = []
      this.frame = document.createElement("iframe")
      this.frame.hidden = true
      document.body.appendChild(this.frame)
      const inside = this.frame.contentWindow
      const load = (url) =>
        new Promise((done, failed) => {
          const script = inside.document.createElement("script")
          script.src = url
          script.onload = done
          script.onerror = failed
          inside.document.body.appendChild(script)
        })
      inside.postMessage = (data) => this.dispatchEvent(new MessageEvent("message", { data }))
      inside.importScripts = (...urls) =>
        urls.reduce((before, url) => before.then(() => load(url)), Promise.resolve())
      load(address).then(() => {
        for (const data of this.waiting) this.give(data)
        this.waiting = null
      })
    }

    give(data) {
      const inside = this.frame.contentWindow
      inside.dispatchEvent(new inside.MessageEvent("message", { data }))
    }

    postMessage(data) {
      if (this.waiting) this.waiting.push(data)
      else this.give(data)
    }

    terminate() {
      this.frame.remove()
    }
  }
  window.Worker = window.IFrameWorker
}
