{{/* The Deployment of one track. Takes root, track, models and replicas (empty if an autoscaler sets them). */}}
{{- define "chatmetrics.deployment" -}}
{{- $values := .root.Values -}}
{{- $name := include "chatmetrics.name" .root -}}
{{- $manifests := dict -}}
{{- range .models -}}{{- $_ := set $manifests .name (.sha256 | default "") -}}{{- end -}}
{{- $labels := dict "root" .root "component" "server" "track" .track -}}
apiVersion: apps/v1
kind: Deployment
metadata:
  name: {{ eq .track "stable" | ternary $name (printf "%s-%s" $name .track) }}
  labels:
    {{- include "chatmetrics.labels" $labels | nindent 4 }}
spec:
  {{- with .replicas }}
  replicas: {{ int . }}
  {{- end }}
  revisionHistoryLimit: {{ int $values.rollout.revisionHistoryLimit }}
  minReadySeconds: {{ int $values.rollout.minReadySeconds }}
  progressDeadlineSeconds: {{ add $values.rollout.startupSeconds $values.rollout.minReadySeconds 30 }}
  strategy:
    type: RollingUpdate
    rollingUpdate:
      {{- if eq $values.rollout.strategy "surge" }}
      maxSurge: 1
      maxUnavailable: 0
      {{- else }}
      maxSurge: 0
      maxUnavailable: 1
      {{- end }}
  selector:
    matchLabels:
      {{- include "chatmetrics.selectorLabels" $labels | nindent 6 }}
  template:
    metadata:
      labels:
        {{- include "chatmetrics.selectorLabels" $labels | nindent 8 }}
      annotations:
        kubectl.kubernetes.io/default-container: proxy
        chatmetrics/release.json: {{ include "chatmetrics.release" . | quote }}
        chatmetrics/manifests: {{ $manifests | toJson | quote }}
        {{- with $values.podAnnotations }}
        {{- toYaml . | nindent 8 }}
        {{- end }}
    spec:
      serviceAccountName: {{ include "chatmetrics.serviceAccountName" .root }}
      automountServiceAccountToken: false
      enableServiceLinks: false
      securityContext:
        {{- include "chatmetrics.podSecurityContext" . | nindent 8 }}
      # The time for which requests are still accepted, and the maximum duration of a request.
      terminationGracePeriodSeconds: {{ add $values.rollout.drainSeconds $values.limits.requestSeconds 15 }}
      {{- with $values.imagePullSecrets }}
      imagePullSecrets:
        {{- toYaml . | nindent 8 }}
      {{- end }}
      initContainers:
        {{- include "chatmetrics.fetchContainer" . | nindent 8 }}
      containers:
        {{- include "chatmetrics.proxyContainer" . | nindent 8 }}
        {{- include "chatmetrics.ollamaContainer" . | nindent 8 }}
      volumes:
        {{- include "chatmetrics.volumes" . | nindent 8 }}
      {{- include "chatmetrics.placement" . | trim | nindent 6 }}
{{- end -}}
