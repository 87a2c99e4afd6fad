"""A load shape of two stages, with two kinds of users by weight."""

from locust import FastHttpUser, HttpUser, LoadTestShape, constant, task


class Reader(HttpUser):
    weight = 2
    wait_time = constant(0.02)

    @task
    def read(self):
        self.client.get("/read")


class Writer(FastHttpUser):
    wait_time = constant(0.02)

    @task
    def write(self):
        self.client.post("/write", json={"text": "x"})


class Stages(LoadTestShape):
    stages = ((0.9, 3, 30), (1.9, 6, 30))

    def tick(self):
        for until, users, rate in self.stages:
            if self.get_run_time() < until:
                return users, rate
        return None
