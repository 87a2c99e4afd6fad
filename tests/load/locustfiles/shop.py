"""A user who logs in, browses in a nested TaskSet, and leaves it again; HttpUser with between()."""

from locust import HttpUser, TaskSet, between, tag, task


class Browsing(TaskSet):
    @task(3)
    def look(self):
        self.client.get(f"/products/{self.user.visits}", name="/products/[id]", headers={"x-token": self.user.token})
        self.user.visits += 1

    @task
    def leave(self):
        self.interrupt(reschedule=False)


class Shopper(HttpUser):
    wait_time = between(0.01, 0.03)
    tasks = {Browsing: 2}

    def on_start(self):
        self.visits = 0
        self.token = self.client.post("/login", json={"user": "ada"}).json()["token"]

    @task
    def broken(self):
        self.client.get("/fail")

    @tag("slow")
    @task
    def never(self):
        self.client.get("/left-out-by-tag")
